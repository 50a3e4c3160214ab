"""ConvReluPool: its kernel, and what it computes."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from raylingvo.models.layers import conv
from raylingvo.ops.conv.conv2d_relu_pool import conv2d_relu_pool


def test_the_layer_is_xavier_uniform():
    kernel = conv.ConvReluPool(20, 50, 5, rngs=nnx.Rngs(0)).kernel[...]
    limit = np.sqrt(6 / (25 * 20 + 25 * 50))
    assert kernel.shape == (5, 5, 20, 50)
    assert 0.99 * limit < jnp.abs(kernel).max() <= limit
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.02)


def test_the_layer_convolves_and_pools():
    layer = conv.ConvReluPool(2, 3, 3, rngs=nnx.Rngs(0))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 7, 2)), jnp.float32)
    pooled = layer(images)
    assert pooled.shape == (2, 3, 3, 3)
    np.testing.assert_allclose(pooled, conv2d_relu_pool(images, layer.kernel[...], implementation="xla"), atol=1e-5)
