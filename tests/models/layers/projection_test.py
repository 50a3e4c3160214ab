import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from raylingvo.models.layers.projection import Projection
from raylingvo.models.layers.variables import logical_axes


def test_it_is_activation_of_matrix_and_bias():
    layer = Projection(3, 4, activation="relu", rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.array([0.1, -0.2, 0.3, -5.0])
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    expected = np.maximum(x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...]), 0)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=1e-6)
    assert not np.asarray(layer(jnp.asarray(x)))[..., 3].any()


def test_without_bias_zero_stays_zero():
    layer = Projection(3, 4, bias=False, axes=("embed", "mlp"), rngs=nnx.Rngs(0))
    assert not layer(jnp.zeros((2, 3))).any()
    assert logical_axes(layer) == {"kernel": ("embed", "mlp")}


def test_weights_are_float32_whatever_is_computed_in():
    layer = Projection(3, 4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert layer(jnp.ones((2, 3))).dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(nnx.state(layer))} == {jnp.dtype("float32")}


def test_an_activation_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"activation must be one of .*relu.* \(got 'rulu'\)"):
        Projection(3, 4, activation="rulu", rngs=nnx.Rngs(0))  # pyright: ignore[reportArgumentType]
