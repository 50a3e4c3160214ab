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


def test_lingvo(lingvo_vectors):
    """TransformerFeedForwardLayer: output and gradients."""
    cases = [c for c in lingvo_vectors("i_layers") if c[0]["layer"] == "TransformerFeedForwardLayer"]
    assert cases
    for case, arrays in cases:
        params = case["params"]
        hidden = arrays["w_fflayer.fc[0].w"].shape[1]
        config = FeedForwardConfig(hidden_dim=hidden, activation=params.get("activation", "RELU").lower())
        position = "pre" if params.get("pre_layer_norm", True) else "post"
        residual = ResidualConfig(
            position="hybrid" if params.get("primer_hybrid_norm") else position,
            skip="input" if params.get("add_skip_connection", True) else "none",
        )
        model = filled(
            lambda c=config, r=residual, d=arrays["in_x"].shape[-1]: ResidualFeedForward(c, r, d, rngs=nnx.Rngs(0))
        )
        nnx.update(model, ours(arrays, "w_"))
        nonpadding = jnp.asarray(1 - arrays["in_paddings"])[..., None]

        def loss(model, x, nonpadding=nonpadding, arrays=arrays):
            y = model(x, nonpadding)
            return jnp.sum(y * arrays["fix_y"]), y

        (gw, gx), y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(model, jnp.asarray(arrays["in_x"]))
        np.testing.assert_allclose(y, arrays["out_y"], atol=2e-5, err_msg=case["id"])
        expected = {"x": arrays["gin_x"], "w": ours(arrays, "gw_")}
        got = {"x": gx, "w": nnx.to_pure_dict(nnx.state(gw))}
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(g, e, atol=3e-5 * max(1, np.abs(e).max()), err_msg=case["id"])


def ours(arrays, prefix):
    def norm(name):
        return {part: arrays[f"{prefix}{name}.{part}"] for part in ("bias", "scale")}

    def dense(i):
        return {"kernel": arrays[f"{prefix}fflayer.fc[{i}].w"], "bias": arrays[f"{prefix}fflayer.fc[{i}].b"]}

    if f"{prefix}pre_layer_norm.scale" in arrays:
        norms = {"norm": norm("pre_layer_norm"), "post_norm": norm("post_layer_norm")}
    else:
        norms = {"norm": norm("layer_norm")}
    return {"inner": {"up": dense(0), "down": dense(1)}, "residual": norms}


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
