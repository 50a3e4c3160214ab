"""Convolutions with their kernels."""

from __future__ import annotations

import jax
from flax import nnx

from raylingvo.models.layers.initializers import xavier
from raylingvo.models.layers.variables import param
from raylingvo.ops.conv.conv2d_relu_pool import conv2d_relu_pool


class ConvReluPool(nnx.Module):
    """`conv2d_relu_pool` with its kernel: f32[K, K, C, F], Xavier uniform; no bias."""

    def __init__(self, in_features: int, out_features: int, kernel_size: int, *, rngs: nnx.Rngs) -> None:
        shape = (kernel_size, kernel_size, in_features, out_features)
        self.kernel = param(rngs, xavier(), shape, (None, None, "in", "out"))

    def __call__(self, images_NxHxWxC: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H//2, W//2, F]. Raises ValueError as `conv2d_relu_pool` does."""
        return conv2d_relu_pool(images_NxHxWxC, self.kernel[...])
