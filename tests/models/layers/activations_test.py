"""Activation functions by name, against TensorFlow's."""

import jax.numpy as jnp
import numpy as np
import pytest

from raylingvo.models.layers.activations import activation

X = np.linspace(-8, 8, 33, dtype=np.float32)


def test_they_are_tensorflows(recorded_tensorflow):
    def compute(tf):
        oracle = {name: getattr(tf.nn, name) for name in ("relu", "relu6", "leaky_relu", "gelu", "silu", "softplus")}
        oracle |= {"sigmoid": tf.sigmoid, "tanh": tf.tanh, "gelu_tanh": lambda x: tf.nn.gelu(x, approximate=True)}
        return {"x": X} | {name: function(X) for name, function in oracle.items()}

    expected = recorded_tensorflow("activations.json", compute)
    x = jnp.asarray(expected.pop("x"))
    assert len(expected) == 9
    for name, values in expected.items():
        np.testing.assert_allclose(activation(name)(x), values, atol=2e-6, err_msg=name)


def test_the_others():
    np.testing.assert_array_equal(activation("none")(jnp.asarray(X)), X)
    np.testing.assert_array_equal(activation("squared_relu")(jnp.asarray(X)), np.maximum(X, 0) ** 2)


def test_an_unknown_name():
    with pytest.raises(ValueError, match=r"activation must be one of none, relu, .* \(got 'rleu'\)"):
        activation("rleu")
