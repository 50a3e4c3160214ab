"""LConv: Lingvo's values, causality, and that padding never leaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from layer_gradients import assert_grad, assert_output, outputs_and_grads

from raylingvo.models.layers.lconv import LConv, LConvConfig

NORMS = {"bn": "batch", "gn": "group", "ln": "layer"}
ACTIVATIONS = {"SWISH": "silu", "GELU_APPROXIMATE": "gelu_tanh", "GELU_RAW": "gelu_tanh"}
NORM_NAMES = {
    "bn": {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "variance": "moving_variance"},
    "gn": {"scale": "gamma", "bias": "beta"},
    "ln": {"scale": "scale", "bias": "bias"},
}


def activation_of(name):
    return ACTIVATIONS.get(name, name.lower())


def variables_of(arrays, prefix, norm):
    """Path of ours -> array of Lingvo's; missing ones are left out."""
    get = lambda name: arrays.get(f"{prefix}_{name}")  # noqa: E731
    found = {"end_kernel": get("linear_end.w"), "end_bias": get("linear_end.b")}
    if f"{prefix}_linear_start_act.w" in arrays:
        found["start_kernel"] = np.stack([get("linear_start_act.w"), get("linear_start_gated.w")], axis=1)
        found["start_bias"] = np.stack([get("linear_start_act.b"), get("linear_start_gated.b")])
    else:  # here, the columns of the gate come first
        kernel = get("linear_start.w")
        found["start_kernel"] = kernel.reshape(-1, 2, kernel.shape[0])[:, ::-1]
        found["start_bias"] = get("linear_start.b").reshape(2, -1)[::-1]
    found["conv/kernel"] = get("depthwise_conv1d.w")
    found |= {f"layer_norm/{name}": get(f"ln.{name}") for name in ("scale", "bias")}
    found |= {f"norm/{ours}": get(f"norm.{theirs}") for ours, theirs in NORM_NAMES[norm].items()}
    return {path: x for path, x in found.items() if x is not None}


def variable(state, path):
    for name in path.split("/"):
        state = state[name] if isinstance(state, nnx.State) else getattr(state, name)
    return state


def test_lconv_is_lingvos(lingvo_vectors):
    cases = [case for case in lingvo_vectors("i_layers") if case[0]["layer"] == "LConvLayer"]
    assert len(cases) >= 4
    for case, arrays in cases:
        p = dict(case["params"])
        norm = p.pop("norm")
        p.pop("split_act_gated_linear_start", None)  # two matrices or one
        config = LConvConfig(
            features=arrays["in_x"].shape[-1],
            kernel_size=p.pop("kernel_size"),
            causal=p.pop("is_causal", False),
            norm=NORMS[norm],
            num_groups=2,  # as the recorder chose
            activation=activation_of(p.pop("conv_activation", "SWISH")),
            gate_activation=activation_of(p.pop("glu_activation", "NONE")),
            dropout_rate=p.pop("dropout_prob", 0.0),  # in evaluation
        )
        assert not p
        layer = LConv(config, rngs=nnx.Rngs(0))
        for path, x in variables_of(arrays, "w", norm).items():
            ours = variable(layer, path)
            ours[...] = jnp.asarray(x).reshape(ours.shape)
        definition, params, rest = nnx.split(layer, nnx.Param, ...)
        paddings, rng = jnp.asarray(arrays["in_paddings"]), None if case["eval_mode"] else jax.random.key(0)

        def run(params, x, definition=definition, rest=rest, paddings=paddings, rng=rng):
            return nnx.merge(definition, params, rest, copy=True)(x, paddings, rng=rng), None

        y, _, (grads, x) = outputs_and_grads(run, (params, jnp.asarray(arrays["in_x"])), jnp.asarray(arrays["fix_y"]))
        assert_output(y, arrays["out_y"], case["id"])
        np.testing.assert_array_equal(paddings, arrays["out_out_paddings"])
        assert_grad(x, arrays["gin_x"], case["id"])
        for path, expected in variables_of(arrays, "gw", norm).items():
            grad = variable(grads, path)[...]
            assert_grad(grad, expected, f"{case['id']} {path}")


X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 4)), jnp.float32)
PADDINGS = jnp.asarray(np.arange(6) >= np.array([[6], [3]]), jnp.float32)


@pytest.mark.parametrize("norm", NORMS.values())
def test_padding_never_leaks(norm):
    layer = LConv(LConvConfig(features=4, kernel_size=3, norm=norm, num_groups=2), rngs=nnx.Rngs(0))
    padded = PADDINGS[..., None] > 0
    run = nnx.jit(lambda layer, x: layer(x, PADDINGS, rng=jax.random.key(0)))
    y, z = run(layer, X), run(layer, jnp.where(padded, 1e3, X))
    np.testing.assert_allclose(jnp.where(padded, 0, y), jnp.where(padded, 0, z), atol=1e-6)


@pytest.mark.parametrize("norm", NORMS.values())
def test_a_causal_layer_does_not_see_the_future(norm):
    layer = LConv(LConvConfig(features=4, kernel_size=3, norm=norm, num_groups=2, causal=True), rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer(X)[:, :3], layer(X[:, :3]), atol=1e-5)


def test_dropout_leaves_the_input():
    layer = LConv(LConvConfig(features=4, kernel_size=3, norm="layer", dropout_rate=0.9), rngs=nnx.Rngs(0))
    layer.end_bias[...] = jnp.full(4, 5.0)
    assert 0.8 < (layer(X, rng=jax.random.key(0)) == X).mean() < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 0}, r"kernel_size must be >= 1 \(got 0\)"),
        ({"norm": "bn"}, r"norm must be one of batch, group, layer \(got 'bn'\)"),
        ({"activation": "RELU"}, "activation must be one of"),
        ({"dropout_rate": 1.0}, r"dropout_rate must be in \[0, 1\) \(got 1.0\)"),
    ],
)
def test_a_config_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        LConvConfig(**{"features": 4, "kernel_size": 3} | options)
