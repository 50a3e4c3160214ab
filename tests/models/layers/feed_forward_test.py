"""The position-wise network and its residual: Lingvo's values, GShard's formula, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled, normal
from flax import nnx

from raylingvo.models.layers.feed_forward import FeedForward, FeedForwardConfig, ResidualFeedForward
from raylingvo.models.layers.residual import Residual, ResidualConfig
from raylingvo.models.layers.variables import logical_axes

ACTIVATIONS = {"SWISH": "silu", "GELU_APPROXIMATE": "gelu_tanh", "GELU_RAW": "gelu_tanh", "GLU": "sigmoid"}


def layer_of(params, arrays):
    hidden, dim = arrays["w_fflayer.fc[1].w"].shape[0], arrays["in_x"].shape[-1]
    name = params.get("activation", "RELU")
    gated = name.endswith("GLU")
    name = name if name == "GLU" else name.removesuffix("_GLU").replace("BILINEAR", "NONE")
    config = FeedForwardConfig(hidden_dim=hidden, activation=ACTIVATIONS.get(name, name.lower()), gated=gated)
    position = "pre" if params.get("pre_layer_norm", True) else "post"
    residual = ResidualConfig(
        position="hybrid" if params.get("primer_hybrid_norm") else position,
        skip="input" if params.get("add_skip_connection", True) else "none",
        weight=params.get("residual_weight", 1.0),
    )
    out_dim = params.get("output_dim") or None
    return filled(lambda: ResidualFeedForward(config, residual, dim, out_dim=out_dim, rngs=nnx.Rngs(0)))


def test_lingvo(lingvo_vectors):
    """TransformerFeedForwardLayer: output and gradients."""
    cases = [c for c in lingvo_vectors("i_layers") if c[0]["layer"] == "TransformerFeedForwardLayer"]
    assert cases
    for case, arrays in cases:
        model = layer_of(case["params"], arrays)
        nnx.update(model, jax.tree.map(jnp.asarray, ours(arrays, "w_")))
        definition, params, rest = nnx.split(model, nnx.Param, ...)
        nonpadding = jnp.asarray(1 - arrays["in_paddings"])[..., None]
        rng = None if case["eval_mode"] else jax.random.key(0)  # nothing is dropped

        def loss(params, x, definition=definition, rest=rest, nonpadding=nonpadding, rng=rng, arrays=arrays):
            y = nnx.merge(definition, params, rest, copy=True)(x, nonpadding, rng=rng)
            return jnp.sum(y * arrays["fix_y"]), y

        (gw, gx), y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, jnp.asarray(arrays["in_x"]))
        np.testing.assert_allclose(y, arrays["out_y"], atol=2e-5, err_msg=case["id"])
        expected = {"x": arrays["gin_x"], "w": ours(arrays, "gw_")}
        got = {"x": gx, "w": nnx.to_pure_dict(gw)}
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(g, e, atol=3e-5 * max(1, np.abs(e).max()), err_msg=case["id"])


def ours(arrays, prefix):
    def norm(name):
        return {part: arrays[f"{prefix}{name}.{part}"] for part in ("bias", "scale")}

    def dense(i):
        return {"kernel": arrays[f"{prefix}fflayer.fc[{i}].w"], "bias": arrays[f"{prefix}fflayer.fc[{i}].b"]}

    up, down = dense(0), dense(1)
    inner = {"up": up, "down": down}
    if up["bias"].size == 2 * down["kernel"].shape[0]:  # gated: the second half is the gate
        up, gate = ({name: np.split(x, 2, axis=-1)[i] for name, x in up.items()} for i in (0, 1))
        inner |= {"up": up, "gate": gate}
    if f"{prefix}pre_layer_norm.scale" in arrays:
        norms = {"norm": norm("pre_layer_norm"), "post_norm": norm("post_layer_norm")}
    else:
        norms = {"norm": norm("layer_norm")}
    found = {"inner": inner, "residual": norms}
    if "gw_res_proj_layer.w" in arrays:  # Lingvo has it even where nothing is added
        names = {"scale": "gamma", "bias": "beta"}
        names |= {"mean": "moving_mean", "variance": "moving_variance"} if prefix == "w_" else {}
        found["shortcut"] = {"kernel": arrays[f"{prefix}res_proj_layer.w"]}
        found["shortcut_norm"] = {name: arrays[f"{prefix}res_proj_layer.bn.{old}"] for name, old in names.items()}
    return found


def test_gated_as_gshard_writes_it():
    config = FeedForwardConfig(hidden_dim=12, activation="gelu_tanh", gated=True, use_bias=False, init="gshard")
    model = filled(lambda: FeedForward(config, 8, rngs=nnx.Rngs(0)))
    x = normal(2, 3, 8)
    gate, up = x @ model.gate.kernel[...], x @ model.up.kernel[...]
    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    np.testing.assert_allclose(model(x), (gelu * up) @ model.down.kernel[...], atol=1e-5)
    assert logical_axes(model) == {
        "down/kernel": ("mlp", "embed"),
        "gate/kernel": ("embed", "mlp"),
        "up/kernel": ("embed", "mlp"),
    }
    made = FeedForward(config, 8, rngs=nnx.Rngs(0))
    for kernel, rows in ((made.up.kernel[...], 8), (made.down.kernel[...], 12)):
        assert 0.9 * (3 / rows) ** 0.5 < jnp.abs(kernel).max() <= (3 / rows) ** 0.5


@pytest.mark.parametrize("zero_padded", [False, True])
def test_padding_never_leaks(zero_padded):
    config = FeedForwardConfig(hidden_dim=12, activation="silu")
    residual = ResidualConfig(norm="rms", zero_padded=zero_padded, direct_scale=True)
    model = filled(lambda: ResidualFeedForward(config, residual, 8, rngs=nnx.Rngs(0)))
    x, nonpadding = normal(2, 3, 8), jnp.array([[1.0, 1, 0], [1, 0, 0]])[..., None]
    other = jnp.where(jnp.broadcast_to(nonpadding, x.shape) == 1, x, 7.0)
    kept = np.asarray(nonpadding[..., 0], bool)
    np.testing.assert_array_equal(model(x, nonpadding)[kept], model(other, nonpadding)[kept])


def test_another_width_comes_out():
    config, x = FeedForwardConfig(hidden_dim=12), normal(2, 3, 8)
    model = filled(lambda: ResidualFeedForward(config, ResidualConfig(), 8, out_dim=5, rngs=nnx.Rngs(0)))
    projected = np.asarray(x @ model.shortcut.kernel[...])
    normed = (projected - projected.mean((0, 1))) / np.sqrt(projected.var((0, 1)) + 1e-3)
    norm = model.shortcut_norm
    shortcut = normed * (1 + np.asarray(norm.scale)) + np.asarray(norm.bias)
    entered = model.residual.enter(x)
    np.testing.assert_allclose(model(x, rng=jax.random.key(0)), model.inner(entered) + shortcut, atol=1e-5)

    alone = ResidualFeedForward(config, ResidualConfig(skip="none"), 8, out_dim=5, rngs=nnx.Rngs(0))
    assert not hasattr(alone, "shortcut") and alone(x).shape == (2, 3, 5)
    with pytest.raises(ValueError, match=r"out_dim must be 8 or None for position 'post' .* \(got 5\)"):
        ResidualFeedForward(config, ResidualConfig(position="post"), 8, out_dim=5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"out_dim must be >= 1 \(got 0\)"):
        ResidualFeedForward(config, ResidualConfig(), 8, out_dim=0, rngs=nnx.Rngs(0))


def test_what_is_added():
    x, y = normal(1, 2, 4), normal(1, 2, 4, seed=1)

    def out(**changes):
        layer = filled(lambda: Residual(ResidualConfig(**changes), 4, rngs=nnx.Rngs(0)))
        entered = layer.enter(x)
        return layer, entered, layer.leave(x, entered, y, None)

    _, entered, got = out(skip="normalized")
    np.testing.assert_allclose(got, entered + y, rtol=1e-6)
    _, _, got = out(weight=0.5)
    np.testing.assert_allclose(got, x + 0.5 * y, rtol=1e-6)
    _, _, got = out(weight=0.5, skip="none")  # there is no sum
    np.testing.assert_array_equal(got, y)
    layer, entered, got = out(position="post")
    np.testing.assert_array_equal(entered, x)
    np.testing.assert_allclose(got, layer.norm(x + y), rtol=1e-6)
    dropped = filled(lambda: Residual(ResidualConfig(dropout_rate=0.5), 4, rngs=nnx.Rngs(0)))
    got = dropped.leave(x, x, y, jax.random.key(0)) - x
    assert np.all(np.isclose(got, 0, atol=1e-6) | np.isclose(got, 2 * y, rtol=1e-4))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"norm": "x"}, "norm must be one of"),
        ({"skip": "normalized", "position": "post"}, "position must be 'pre'"),
        ({"dropout_rate": 1.0}, "dropout_rate must be in"),
        ({"epsilon": 0.0}, "epsilon must be > 0"),
    ],
)
def test_bad_residuals(change, message):
    with pytest.raises(ValueError, match=message):
        ResidualConfig(**change)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_dim": 0}, "hidden_dim must be > 0"),
        ({"activation": "x"}, "activation must be one of"),
        ({"init": "x"}, "init must be one of"),
        ({"dropout_rate": -0.1}, "dropout_rate must be in"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ValueError, match=message):
        FeedForwardConfig(**{"hidden_dim": 4, **change})
