"""Activation functions by name, against TensorFlow's."""

import jax.numpy as jnp
import numpy as np
import pytest

from raylingvo.models.layers.activations import activation

X = np.linspace(-8, 8, 33, dtype=np.float32)


@pytest.mark.parametrize(
    "name", ["relu", "relu6", "leaky_relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu", "softplus"]
)
def test_they_are_tensorflows(name):
    tf = pytest.importorskip("tensorflow")
    oracle = {"sigmoid": tf.sigmoid, "tanh": tf.tanh, "gelu_tanh": lambda x: tf.nn.gelu(x, approximate=True)}
    expected = oracle.get(name, getattr(tf.nn, name, None))(X)
    np.testing.assert_allclose(activation(name)(jnp.asarray(X)), expected, atol=2e-6)


def test_the_others():
    np.testing.assert_array_equal(activation("none")(jnp.asarray(X)), X)
    np.testing.assert_array_equal(activation("squared_relu")(jnp.asarray(X)), np.maximum(X, 0) ** 2)


def test_an_unknown_name():
    with pytest.raises(ValueError, match=r"activation must be one of none, relu, .* \(got 'rleu'\)"):
        activation("rleu")
