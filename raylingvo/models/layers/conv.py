"""Convolutions with their kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from raylingvo.ops.conv.conv2d_relu_pool import conv2d_relu_pool

# Lingvo's default, WeightInit.Xavier: U(-l, l) with l = sqrt(6 / (fan_in + fan_out)), where for a kernel [K, K, C, D]
# fan_in = K*K*C and fan_out = K*K*D. (Lingvo multiplies l by 1.000001, to tell its default from an explicit choice.)
XAVIER = nnx.initializers.xavier_uniform()


class ConvReluPool(nnx.Module):
    """`conv2d_relu_pool` with its kernel: f32[K, K, C, F], Xavier uniform; no bias."""

    def __init__(self, in_features: int, out_features: int, kernel_size: int, *, rngs: nnx.Rngs) -> None:
        shape = (kernel_size, kernel_size, in_features, out_features)
        self.kernel = nnx.Param(XAVIER(rngs.params(), shape, jnp.float32))

    def __call__(self, images_NxHxWxC: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H//2, W//2, F]. Raises ValueError as `conv2d_relu_pool` does."""
        return conv2d_relu_pool(images_NxHxWxC, self.kernel[...])
