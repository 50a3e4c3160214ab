"""LayerNorm and RmsNorm: Lingvo's values, and formulas written out."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from layer_gradients import assert_grad, assert_output, outputs_and_grads

from raylingvo.models.layers.normalization import LayerNorm, RmsNorm

X = jnp.asarray(np.random.default_rng(0).normal(2.0, 3.0, size=(2, 3, 7)), jnp.float32)
WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(size=(2, 7)), jnp.float32)


def test_layer_norm_is_lingvos(lingvo_vectors):
    cases = [case for case in lingvo_vectors("i_layers") if case[0]["layer"] == "LayerNorm"]
    assert len(cases) >= 3
    for case, arrays in cases:
        p = dict(case["params"])
        for way in ("use_fused_layernorm", "use_defun", "use_batch_norm_backend"):
            p.pop(way, None)  # the same numbers in another way
        layer = LayerNorm(7, rngs=nnx.Rngs(0), use_bias=p.pop("bias", True), **p)
        for name in ("scale", "bias"):
            assert hasattr(layer, name) == (f"w_{name}" in arrays)
            if hasattr(layer, name):
                getattr(layer, name)[...] = jnp.asarray(arrays[f"w_{name}"])
        definition, params = nnx.split(layer)
        y, _, (grads, x) = outputs_and_grads(
            lambda params, x, definition=definition: (nnx.merge(definition, params)(x), None),
            (params, jnp.asarray(arrays["in_x"])),
            jnp.asarray(arrays["fix_y"]),
        )
        assert_output(y, arrays["out_y"], case["id"])
        assert_grad(x, arrays["gin_x"], case["id"])
        for name, grad in grads.items():
            assert_grad(grad[...], arrays[f"gw_{name}"], case["id"])


@pytest.mark.parametrize("direct", [False, True])
def test_a_direct_scale_is_the_scale_and_another_the_scale_less_1(direct):
    layer = LayerNorm(7, rngs=nnx.Rngs(0), direct_scale=direct, epsilon=1e-3)
    assert (layer.scale[...] == direct).all()
    scale, layer.bias[...] = WEIGHTS
    layer.scale[...] = scale - (not direct)
    x = np.asarray(X, np.float64)
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(layer(X), normal * np.asarray(scale) + np.asarray(layer.bias), atol=1e-5)


def test_rms_norm_has_neither_mean_nor_bias():
    layer = RmsNorm(7, rngs=nnx.Rngs(0), epsilon=1e-3)
    assert set(nnx.to_pure_dict(nnx.state(layer))) == {"scale"}
    layer.scale[...] = WEIGHTS[0]
    x = np.asarray(X, np.float64)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * (1 + np.asarray(WEIGHTS[0]))
    np.testing.assert_allclose(layer(X), expected, atol=1e-5)


def test_statistics_are_float32_whatever_the_dtype():
    layer = LayerNorm(7, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    assert layer(X).dtype == jnp.bfloat16
    np.testing.assert_array_equal(layer(X), LayerNorm(7, rngs=nnx.Rngs(0))(X).astype(jnp.bfloat16))


def test_epsilon_must_be_positive():
    with pytest.raises(ValueError, match=r"epsilon must be > 0 \(got 0.0\)"):
        LayerNorm(7, rngs=nnx.Rngs(0), epsilon=0.0)
