"""Stacks of Transformer blocks: unrolled, scanned, rematerialised, by steps, on several devices."""

import dataclasses
import functools
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled, normal
from flax import nnx

from raylingvo.models.layers.attention import AttentionConfig
from raylingvo.models.layers.feed_forward import FeedForwardConfig
from raylingvo.models.layers.moe import MoeConfig
from raylingvo.models.layers.positions import Rotary
from raylingvo.models.layers.relative_bias import RelativeBiasConfig
from raylingvo.models.layers.residual import ResidualConfig
from raylingvo.models.layers.transformer import Transformer, TransformerConfig
from raylingvo.models.layers.variables import logical_axes

B, T, D = 2, 6, 8
# Lingvo's machine translation encoder, decoder, GShard's language model with experts, and a post-norm model.
ENCODER = TransformerConfig(
    num_layers=2,
    attention=AttentionConfig(model_dim=D, num_heads=2),
    feed_forward=FeedForwardConfig(hidden_dim=12),
    attention_residual=ResidualConfig(skip="normalized"),
    causal=False,
    final_norm=False,
)
DECODER = dataclasses.replace(
    ENCODER, causal=True, cross_attention=AttentionConfig(model_dim=D, num_heads=2, key_dim=5, value_dim=5)
)
GSHARD = TransformerConfig(
    num_layers=2,
    attention=AttentionConfig(
        model_dim=D,
        num_heads=2,
        use_bias=False,
        query_scale="none",
        init="gshard",
        extra_logit=0.0,
        relative_bias=RelativeBiasConfig(),
    ),
    feed_forward=FeedForwardConfig(hidden_dim=12, activation="gelu_tanh", gated=True, use_bias=False, init="gshard"),
    residual=ResidualConfig(norm="rms", zero_padded=True, direct_scale=True),
    moe=MoeConfig(num_experts=4, hidden_dim=6, capacity_factor=4.0),
)
POST = dataclasses.replace(
    ENCODER,
    causal=True,
    attention=AttentionConfig(model_dim=D, num_heads=2, rotary=Rotary(), left_context=3),
    attention_residual=ResidualConfig(position="post"),
    residual=ResidualConfig(position="hybrid", dropout_rate=0.1),
)
CONFIGS = {"encoder": ENCODER, "decoder": DECODER, "gshard": GSHARD, "post": POST}


def changed(name, **changes):
    return dataclasses.replace(CONFIGS[name], **changes)


@functools.cache
def stack(name, **changes):
    return filled(lambda: Transformer(changed(name, **changes), rngs=nnx.Rngs(0)))


@functools.partial(jax.jit, static_argnames="with_source_probs")
def call(model, x, **kwargs):
    return model(x, **kwargs)


def sources(name, length=3):
    return {"source": normal(B, length, 5, seed=9)} if name == "decoder" else {}


def stacked(unrolled, scanned):
    """The weights of the unrolled stack in the scanned one."""
    period = len(scanned.blocks)
    groups = [list(unrolled.blocks)[i::period] for i in range(period)]
    made = [jax.tree.map(lambda *leaves: np.stack(leaves), *group) for group in groups]
    nnx.update(scanned, {"blocks": nnx.state(nnx.List(made))})
    if unrolled.norm is not None:
        nnx.update(scanned.norm, nnx.state(unrolled.norm))
    return scanned


def value_and_gradients(model, x, remat, **given):
    model = nnx.clone(model)
    model.config = dataclasses.replace(model.config, remat=remat)

    def loss(model, x):
        out = model(x, **given)
        return jnp.sum(out.output**2) + out.aux_loss

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(model, x)


@pytest.mark.parametrize(
    "name, layers, unrolled_remat, scanned_remat",
    # With experts, each step of the scan is a pair of blocks.
    [("decoder", 2, None, "dots_with_no_batch_dims_saveable"), ("gshard", 4, "nothing_saveable", None)],
)
def test_scan_and_remat_change_nothing(name, layers, unrolled_remat, scanned_remat):
    unrolled, x = stack(name, num_layers=layers), normal(B, T, D)
    scanned = stacked(
        unrolled, filled(lambda: Transformer(changed(name, scan=True, num_layers=layers), rngs=nnx.Rngs(0)))
    )
    expected, (weights, inputs) = value_and_gradients(unrolled, x, unrolled_remat, **sources(name))
    weights = nnx.state(stacked(weights, jax.tree.map(np.zeros_like, scanned)))
    value, (gw, gx) = value_and_gradients(scanned, x, scanned_remat, **sources(name))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gx, inputs, atol=1e-4 * np.abs(inputs).max())
    assert jax.tree.structure(nnx.state(gw)) == jax.tree.structure(weights)
    for g, e in zip(jax.tree.leaves(gw), jax.tree.leaves(weights), strict=True):
        np.testing.assert_allclose(g, e, atol=1e-4 * max(1, np.abs(e).max()))
        assert np.abs(e).max() > 0


@pytest.mark.parametrize("name, scan", [("decoder", False), ("gshard", True), ("post", False)])
def test_decoding_by_steps_is_teacher_forcing(name, scan):
    # Scanned, the whole runs as a scan of two pairs of blocks and a step as four blocks.
    model = stack(name, scan=scan, num_layers=4 if scan else 2)
    x, given = normal(B, T, D), sources(name)
    expected = call(model, x, with_source_probs=True, **given)
    source = model.project_source(given["source"]) if given else None
    step = jax.jit(lambda model, x, cache, i, source: model.extend_step(x, cache, i, source=source))
    cache = model.init_cache(B, T)
    for t in range(T):
        out, cache = step(model, x[:, t : t + 1], cache, t, source)
        np.testing.assert_allclose(out.output[:, 0], expected.output[:, t], atol=1e-5)
        if given:
            np.testing.assert_allclose(out.source_probs[:, 0], expected.source_probs[:, t], atol=1e-6)


@pytest.mark.parametrize("name", ["encoder", "decoder", "gshard", "post"])
def test_padding_never_leaks_and_causal_is_causal(name):
    model, x, given = stack(name), normal(B, T, D), sources(name)
    other = x.at[:, 4:].set(normal(B, T, D, seed=1)[:, 4:])
    paddings = jnp.zeros((B, T)).at[:, 4:].set(1)
    for at in (paddings, None):
        if at is None and (name == "encoder" or CONFIGS[name].moe):
            continue  # Second experts' places come after all first ones, those of later tokens too.
        first, second = call(model, x, paddings=at, **given), call(model, other, paddings=at, **given)
        np.testing.assert_allclose(first.output[:, :4], second.output[:, :4], atol=1e-6)


def test_a_source_s_padding_never_leaks():
    model, x, paddings = stack("decoder"), normal(B, T, D), jnp.zeros((B, 3)).at[0, 2].set(1)
    source = sources("decoder")["source"]
    other = source.at[0, 2].set(7.0)
    expected = call(model, x, source=source, source_paddings=paddings).output
    np.testing.assert_allclose(call(model, x, source=other, source_paddings=paddings).output, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["decoder", "gshard"])
def test_packed_is_unpacked(name):
    model, x = stack(name), normal(1, T, D)
    packed = {"segment_ids": jnp.array([[1, 1, 2, 2, 2, 0]]), "positions": jnp.array([[0, 1, 0, 1, 2, 0]])}
    if name == "decoder":
        packed |= {"source": normal(1, 4, 5), "source_segment_ids": jnp.array([[1, 2, 2, 0]])}
    out = call(model, x, **packed).output
    given = {"source": packed["source"][:, 1:3]} if name == "decoder" else {}
    np.testing.assert_allclose(out[:, 2:5], call(model, x[:, 2:5], **given).output, atol=1e-5)


def test_blocks_of_local_attention_are_a_window():
    local = AttentionConfig(model_dim=D, num_heads=2, left_context=3, right_context=0)
    whole = stack("encoder", attention=local, causal=True)
    blocked = stack("encoder", attention=dataclasses.replace(local, block_size=2), causal=True)
    x, paddings = normal(B, T, D), jnp.zeros((B, T)).at[0, 4:].set(1)
    expected, got = call(whole, x, paddings=paddings).output, call(blocked, x, paddings=paddings).output
    np.testing.assert_allclose(got[1], expected[1], atol=1e-5)
    np.testing.assert_allclose(got[0, :4], expected[0, :4], atol=1e-5)


def test_lingvo_s_normalised_residual():
    config = dataclasses.replace(ENCODER, num_layers=1)
    model, x = filled(lambda: Transformer(config, rngs=nnx.Rngs(0))), normal(B, T, D)
    block = model.blocks[0]
    entered = block.self_residual.norm(x)
    y = entered + block.self_attention(entered)[0]
    y = y + block.feed_forward(block.residual.norm(y))
    np.testing.assert_allclose(call(model, x).output, y, atol=1e-5)


def test_dropout_is_drawn_for_each_block():
    config = dataclasses.replace(POST, scan=True)
    model, x = filled(lambda: Transformer(config, rngs=nnx.Rngs(0))), normal(B, T, D)
    key = jax.random.key(0)
    first, again, other = (call(model, x, rng=k).output for k in (key, key, jax.random.key(1)))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3 and np.abs(first - call(model, x).output).max() > 1e-3


def test_axes_and_initial_weights_of_a_scanned_stack():
    axes = logical_axes(stack("gshard", scan=True, num_layers=4))
    assert axes["blocks/0/moe/up"] == ("layers", "expert", "embed", "mlp")
    assert axes["blocks/1/feed_forward/up/kernel"] == ("layers", "embed", "mlp")
    assert axes["norm/scale"] == ("embed",)
    model = Transformer(dataclasses.replace(ENCODER, scan=True), rngs=nnx.Rngs(0))
    kernel = model.blocks[0].self_attention.query.kernel[...]
    assert kernel.shape == (2, D, 2, D // 2) and np.abs(kernel[0] - kernel[1]).max() > 1e-3


def test_bad_configs_and_calls():
    for change, message in (
        ({"num_layers": 0}, "num_layers must be > 0"),
        ({"num_layers": 3, "scan": True}, "num_layers must be a multiple of moe_every"),
        ({"remat": "x"}, "remat must be None or one of"),
        ({"cross_attention": AttentionConfig(model_dim=4, num_heads=2)}, "cross_attention.model_dim must be"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(GSHARD, **change)
    x = normal(B, T, D)
    with pytest.raises(ValueError, match="paddings must be None"):
        stack("encoder")(x, paddings=jnp.zeros((B, T)), segment_ids=jnp.ones((B, T), jnp.int32))
    with pytest.raises(ValueError, match="source must be given"):
        stack("decoder")(x)
    with pytest.raises(ValueError, match="causal must be True"):
        stack("encoder").extend_step(x, (), 0)
    with pytest.raises(ValueError, match="segment_ids must be given"):
        stack("decoder")(x, source_segment_ids=jnp.ones((B, 3), jnp.int32), **sources("decoder"))


def test_eight_devices_are_one():
    """A stack with experts, heads and inner layers sharded over 8 CPU devices, batch too: outputs and gradients."""
    program = """
        import dataclasses, jax, jax.numpy as jnp, numpy as np
        from flax import nnx
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from filled import filled, normal
        from raylingvo.models.layers.attention import AttentionConfig
        from raylingvo.models.layers.feed_forward import FeedForwardConfig
        from raylingvo.models.layers.moe import MoeConfig
        from raylingvo.models.layers.transformer import Transformer, TransformerConfig
        assert jax.device_count() == 8
        config = TransformerConfig(
            num_layers=2, attention=AttentionConfig(model_dim=8, num_heads=4),
            feed_forward=FeedForwardConfig(hidden_dim=16), moe=MoeConfig(num_experts=4, hidden_dim=8, num_groups=2))
        model, x = filled(lambda: Transformer(config, rngs=nnx.Rngs(0))), normal(4, 8, 8)

        def loss(model, x):
            out = model(x)
            return jnp.sum(out.output**2) + out.aux_loss, out.output

        run = jax.jit(jax.value_and_grad(loss, has_aux=True))
        mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
        rules = {"heads": "model", "kv_heads": "model", "expert": "model", "mlp": "model"}

        def shard(variable):
            used, spec = set(), []
            for axis in variable.get_metadata()["axes"]:
                name = rules.get(axis)
                spec.append(None if name in used else name)
                used.add(name)
            sharding = NamedSharding(mesh, P(*spec))
            return variable.replace(jax.device_put(variable[...], sharding)) if any(spec) else variable

        graph, state = nnx.split(model)
        sharded = nnx.merge(graph, jax.tree.map(shard, state, is_leaf=lambda v: isinstance(v, nnx.Variable)))
        assert len(sharded.blocks[0].moe.up[...].sharding.device_set) == 8
        (one, out), grads = run(model, x)
        (eight, out8), grads8 = run(sharded, jax.device_put(x, NamedSharding(mesh, P("data"))))
        np.testing.assert_allclose(eight, one, rtol=1e-5)
        np.testing.assert_allclose(out8, out, atol=1e-5)
        for a, b in zip(jax.tree.leaves(grads8), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4 * max(1, np.abs(b).max()))
        print("equal")
    """
    flags = {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.stdout.strip() == "equal", done.stderr
