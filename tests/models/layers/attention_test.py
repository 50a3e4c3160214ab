"""Multi-headed attention: properties, a numpy oracle, and Lingvo's values."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled, normal
from flax import nnx

from raylingvo.models.layers.attention import AttentionConfig, MultiHeadedAttention
from raylingvo.models.layers.masks import combine_masks, padding_mask, segment_mask, window_mask
from raylingvo.models.layers.positions import Rotary
from raylingvo.models.layers.relative_bias import RelativeBiasConfig
from raylingvo.models.layers.variables import logical_axes

B, T, D, N, H = 2, 7, 8, 4, 6
CAUSAL = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, 1, T, T))
PLAIN = AttentionConfig(model_dim=D, num_heads=N, head_dim=H)
GSHARD = dataclasses.replace(
    PLAIN, use_bias=False, query_scale="none", init="gshard", extra_logit=0.0, relative_bias=RelativeBiasConfig()
)
VARIANTS = {
    "plain": PLAIN,
    "gshard": GSHARD,
    "grouped": dataclasses.replace(PLAIN, num_kv_heads=2, rotary=Rotary(), query_scale="sqrt_dim"),
    "multi_query": dataclasses.replace(GSHARD, num_kv_heads=1, logit_cap=2.0),
    "window": dataclasses.replace(PLAIN, left_context=3, right_context=0, rotary=Rotary()),
}


@functools.cache
def layer(config: AttentionConfig) -> MultiHeadedAttention:
    return filled(lambda: MultiHeadedAttention(config, rngs=nnx.Rngs(0)))


@jax.jit
def call(model, *args, **kwargs):
    """One compiled program per configuration and shape, instead of one per operation."""
    return model(*args, **kwargs)


def inputs(seed: int = 0, shape=(B, T, D)) -> jax.Array:
    return normal(*shape, seed=seed)


@pytest.mark.parametrize("name", VARIANTS)
def test_decoding_with_a_cache_is_teacher_forcing(name):
    model, x = layer(VARIANTS[name]), inputs()
    expected, _ = call(model, x, mask=CAUSAL)
    step = jax.jit(lambda model, x, cache, index: model.extend_step(x, cache, index))
    cache = model.init_cache(B, T)
    for t in range(T):
        out, cache = step(model, x[:, t : t + 1], cache, t)
        np.testing.assert_allclose(out[:, 0], expected[:, t], atol=1e-5)
    if name == "grouped":
        prefix, cache = step(model, x[:, :4], model.init_cache(B, T), 0)
        rest, _ = step(model, x[:, 4:], cache, 4)
        np.testing.assert_allclose(np.concatenate([prefix, rest], 1), expected, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_masked_does_not_count(name):
    model, x = layer(VARIANTS[name]), inputs()
    other = jnp.concatenate([x[:, :5], inputs(1)[:, 5:]], 1)
    padded = np.broadcast_to(np.arange(T) < 5, (B, 1, T, T))
    for mask in (CAUSAL, padded):
        out, other_out = call(model, x, mask=mask)[0], call(model, other, mask=mask)[0]
        np.testing.assert_allclose(out[:, :5], other_out[:, :5], atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "gshard", "grouped"])
def test_packed_is_unpacked(name):
    model, first, second = layer(VARIANTS[name]), inputs(0, (1, 3, D)), inputs(1, (1, 4, D))
    ids, at = jnp.array([[1, 1, 1, 2, 2, 2, 2]]), jnp.array([[0, 1, 2, 0, 1, 2, 3]])
    packed, _ = call(model, jnp.concatenate([first, second], 1), mask=segment_mask(ids), positions=at)
    np.testing.assert_allclose(packed, np.concatenate([call(model, first)[0], call(model, second)[0]], 1), atol=1e-5)


@pytest.mark.parametrize("length, block, left, right", [(7, 2, 3, 0), (7, 3, 2, 4), (5, 8, 9, 2)])
def test_by_blocks_is_a_window(length, block, left, right):
    base = dataclasses.replace(GSHARD, left_context=left, right_context=right, num_kv_heads=2, rotary=Rotary())
    blocked, whole = layer(dataclasses.replace(base, block_size=block)), layer(base)
    x, ids = inputs(0, (B, length, D)), jnp.array([[1] * 3 + [2] * (length - 3), [1] * (length - 1) + [0]])
    out, probs = call(blocked, x, segment_ids=ids)
    assert probs is None
    np.testing.assert_allclose(out, call(whole, x, mask=segment_mask(ids))[0], atol=1e-5)
    if block == 2:
        np.testing.assert_allclose(call(blocked, x)[0], call(whole, x)[0], atol=1e-5)


def test_hyps_attend_to_their_source():
    model, source, query = layer(PLAIN), inputs(0), inputs(1, (3 * B, 2, D))
    mask = padding_mask(jnp.zeros((B, T)).at[0, 4:].set(1))
    kv = model.project_source(source)
    out, probs = call(model, query, source=kv, mask=mask)
    for i in range(3 * B):
        own = slice(i % B, i % B + 1)
        expected, expected_probs = call(model, query[i : i + 1], source[own], mask=mask[own])
        np.testing.assert_allclose(out[i], expected[0], atol=1e-5)
        np.testing.assert_allclose(probs[i], expected_probs[0], atol=1e-6)


def test_grouped_heads_are_repeated_heads():
    config = VARIANTS["grouped"]
    model = layer(config)
    full = layer(dataclasses.replace(config, num_kv_heads=N))
    state = nnx.to_pure_dict(nnx.state(model))
    for name in ("key", "value"):
        state[name] = {k: jnp.repeat(v, 2, axis=-2) for k, v in state[name].items()}
    nnx.update(full, state)
    np.testing.assert_allclose(call(model, inputs())[0], call(full, inputs())[0], atol=1e-5)


def test_gshard_against_numpy():
    config = dataclasses.replace(GSHARD, relative_bias=None, logit_cap=1.5)
    model, x = layer(config), np.asarray(inputs())
    q, k, v = (np.einsum("btd,dnh->bnth", x, getattr(model, n).kernel[...]) for n in ("query", "key", "value"))
    logits = 1.5 * np.tanh(q @ k.swapaxes(-1, -2) / 1.5) + np.where(np.tril(np.ones((T, T))), 0, -1e9)
    weights = np.exp(logits)
    probs = weights / (weights.sum(-1, keepdims=True) + 1)
    expected = np.einsum("bnth,nhd->btd", probs @ v, model.output.kernel[...])
    out, got = call(model, jnp.asarray(x), mask=CAUSAL)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(got, probs, atol=1e-6)


def test_a_query_that_sees_nothing():
    nothing = jnp.zeros((1, 1, T, T), bool)
    np.testing.assert_allclose(call(layer(PLAIN), inputs(), mask=nothing)[1], 1 / T, rtol=1e-6)
    assert not np.any(call(layer(GSHARD), inputs(), mask=nothing)[0])


def test_dropout_is_of_probabilities_and_off_without_a_key():
    """Of a value that is 1 everywhere, a query gets the sum of what is left of its probabilities."""
    config = AttentionConfig(model_dim=1, num_heads=1, use_bias=False, value_projection=False, dropout_rate=0.5)
    model = filled(lambda: MultiHeadedAttention(config, rngs=nnx.Rngs(0)))
    x = jnp.ones((1, 400, 1))
    plain = call(model, x)[0]
    ratio = call(model, x, rng=jax.random.key(0))[0] / plain
    np.testing.assert_allclose(plain, np.broadcast_to(model.output.kernel[...], plain.shape), rtol=1e-5)
    assert 0.04 < ratio.std() < 0.06 and abs(ratio.mean() - 1) < 0.01


def test_initial_weights():
    wide = dataclasses.replace(GSHARD, model_dim=64, num_heads=2, head_dim=32, relative_bias=None)
    model = MultiHeadedAttention(wide, rngs=nnx.Rngs(0))
    for name, fan in (("query", 64 * 32), ("key", 64), ("value", 64), ("output", 64)):
        np.testing.assert_allclose(jnp.std(getattr(model, name).kernel[...]), fan**-0.5, rtol=0.05)
    model = MultiHeadedAttention(dataclasses.replace(wide, init="xavier", init_scale=0.5), rngs=nnx.Rngs(0))
    for name in ("query", "output"):
        top = jnp.abs(getattr(model, name).kernel[...]).max()
        np.testing.assert_allclose(top, 0.5 * (6 / (64 + 64)) ** 0.5, rtol=0.01)
    axes = logical_axes(layer(dataclasses.replace(PLAIN, num_kv_heads=2)))
    assert axes["query/kernel"] == ("embed", "heads", "head_dim") and axes["output/bias"] == ("embed",)
    assert axes["key/bias"] == ("kv_heads", "head_dim") and axes["output/kernel"] == ("heads", "head_dim", "embed")


def test_bfloat16_computes_in_bfloat16_with_float32_weights():
    model = filled(lambda: MultiHeadedAttention(GSHARD, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    out, probs = call(model, inputs(), mask=CAUSAL)
    assert out.dtype == jnp.bfloat16 and probs.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(model)))
    np.testing.assert_allclose(out.astype(jnp.float32), call(layer(GSHARD), inputs(), mask=CAUSAL)[0], atol=0.1)
    assert model.init_cache(1, 2).key.dtype == jnp.bfloat16


def test_mask_of_the_caller_alone_rules_in_a_step():
    model, x = layer(VARIANTS["grouped"]), inputs()
    at = jnp.array([[0, 1, 0, 1, 2, 3, 2]])
    ids = jnp.array([[1, 1, 2, 2, 2, 2, 1]])
    mask = combine_masks(segment_mask(ids), window_mask(jnp.arange(T), jnp.arange(T), None, 0))
    expected, _ = call(model, x, mask=mask, positions=at)
    cache = model.init_cache(B, T)
    step = jax.jit(lambda model, x, cache, t, **more: model.extend_step(x, cache, t, key_positions=at, **more))
    for t in range(T):
        more = {"mask": mask[:, :, t : t + 1], "positions": at[:, t : t + 1]}
        out, cache = step(model, x[:, t : t + 1], cache, t, **more)
        np.testing.assert_allclose(out[:, 0], expected[:, t], atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_dim": 0}, "model_dim must be > 0"),
        ({"num_heads": 3, "head_dim": None}, "num_heads must divide model_dim 8"),
        ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads 4"),
        ({"value_projection": False}, "value_dim must be num_kv_heads"),
        ({"query_scale": "x"}, "query_scale must be one of"),
        ({"init": "x"}, "init must be one of"),
        ({"block_size": 2}, "left_context and right_context must be set"),
        ({"right_context": -1}, "right_context must be >= 0"),
        ({"logit_cap": 0.0}, "logit_cap must be > 0"),
        ({"dropout_rate": 1.0}, "dropout_rate must be in"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **change)


def test_bad_calls():
    x, model = inputs(), layer(PLAIN)
    with pytest.raises(ValueError, match="source must be None"):
        model(x, x, source=model.project_source(x))
    with pytest.raises(ValueError, match="segment_ids must be None"):
        model(x, segment_ids=jnp.ones((B, T), jnp.int32))
    with pytest.raises(ValueError, match="left_context and right_context"):
        layer(VARIANTS["window"])(x, x)
    with pytest.raises(ValueError, match="multiple of that of keys 2"):
        model(inputs(0, (3, T, D)), source=model.project_source(x))


def test_lingvo(lingvo_vectors):
    """batch_major_attention.MultiHeadedAttention, output, probabilities and gradients."""
    cases = [c for c in lingvo_vectors("i_layers") if c[0]["layer"] == "batch_major_attention.MultiHeadedAttention"]
    assert cases
    for case, arrays in cases:
        model = layer(config_of(case["params"], arrays))
        assert not case["params"].get("is_masked")
        weights = {k.removeprefix("w_"): jnp.asarray(v) for k, v in arrays.items() if k.startswith("w_")}
        given = {k.removeprefix("in_"): jnp.asarray(v) for k, v in arrays.items() if k.startswith("in_")}
        if case["params"].get("packed_input"):
            mask = segment_mask(given["segment_ids"])
        else:
            mask = padding_mask(given["paddings"])
            if "per_step_padding" in given:
                mask = combine_masks(mask, given["per_step_padding"][:, None] == 0)

        nnx.update(model, ours(weights))

        def loss(model, query, key, value, mask=mask, arrays=arrays):
            out, probs = model(query, key, value, mask=mask)
            total = jnp.sum(out * arrays["fix_encoded"])
            total += jnp.sum(probs * arrays["fix_probs"]) if "fix_probs" in arrays else 0
            return total, (out, probs)

        args = (model, given["query"], given["key"], given["value"])
        got, (out, probs) = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(*args)
        np.testing.assert_allclose(out, arrays["out_encoded"], atol=2e-5, err_msg=case["id"])
        if "out_probs" in arrays:
            np.testing.assert_allclose(probs, arrays["out_probs"], atol=2e-5, err_msg=case["id"])
        expected = {k.removeprefix("gw_"): v for k, v in arrays.items() if k.startswith("gw_")}
        close(nnx.to_pure_dict(nnx.state(got[0])), ours(expected), case["id"])
        close(list(got[1:]), [arrays[f"gin_{n}"] for n in ("query", "key", "value")], case["id"])


def config_of(params, arrays):
    dims = params.get("input_dim")
    dims = dims if isinstance(dims, dict) else dict.fromkeys(("key", "query", "value"), arrays["in_query"].shape[-1])
    rope = params.get("rope")
    scale = "per_dim" if params.get("enable_per_dim_scale", True) else "sqrt_dim"
    return AttentionConfig(
        model_dim=dims["query"],
        num_heads=params["num_heads"],
        head_dim=params.get("dim_per_head") or params["hidden_dim"] // params["num_heads"],
        key_dim=dims["key"],
        value_dim=dims["value"],
        query_scale=scale if params.get("enable_query_scale", True) else "none",
        value_projection=params.get("enable_value_proj", True),
        use_bias=params.get("use_bias", True),
        logit_cap=params.get("atten_logit_cap") or None,
        extra_logit=params.get("atten_extra_logit"),
        rotary=Rotary(**(rope if isinstance(rope, dict) else {})) if rope else None,
    )


def ours(weights):
    """Lingvo's variables as this layer's state."""
    names = {"query": "query", "key": "key", "value": "value", "post": "output"}
    state = {}
    for theirs, name in names.items():
        if f"{theirs}.w" in weights:
            kernel = weights[f"{theirs}.w"]
            state[name] = {"kernel": kernel.transpose(1, 2, 0) if name == "output" else kernel}
            if f"{theirs}.b" in weights:
                state[name]["bias"] = weights[f"{theirs}.b"]
    if "per_dim_scale.per_dim_scale" in weights:
        state["scale"] = weights["per_dim_scale.per_dim_scale"]
    return state


def close(got, expected, name):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(g, e, atol=3e-5 * max(1, np.abs(e).max()), err_msg=name)
