"""`conv2d_relu_pool` and its gradients in C++ (csrc/conv2d_relu_pool.cc)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap

from raylingvo.ops._native import call
from raylingvo.ops.conv import _conv2d_cpp
from raylingvo.ops.conv._conv2d_window import Window


def forward(x: jax.Array, kernel: jax.Array, window: Window) -> tuple[jax.Array, jax.Array]:
    """The result, and of which outputs of its pooling window it is the maximum: u8, bit i for output i."""
    h, w = (size // 2 for size in window.result_size(x.shape, kernel.shape))
    shape = (x.shape[0], h, w, kernel.shape[3])
    result = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape, jnp.uint8)
    return _call("RaylingvoConv2dReluPool", result, x, kernel, window=window)


def input_grad(
    grad: jax.Array, kernel: jax.Array, which: jax.Array, shape: tuple[int, ...], window: Window
) -> jax.Array:
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    return _call("RaylingvoConv2dReluPoolInputGrad", result, grad, kernel, which, window=window)


def kernel_grad(x: jax.Array, grad: jax.Array, which: jax.Array, shape: tuple[int, ...], window: Window) -> jax.Array:
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    return _call("RaylingvoConv2dReluPoolKernelGrad", result, x, grad, which, window=window)


def _call(target: str, result: Any, *args: jax.Array, window: Window) -> Any:
    (top, _), (left, _) = window.padding
    padding = np.array([top, left], np.int64)

    # Under vmap, one call for each element: kernels differ.
    @sequential_vmap
    def run(*args: jax.Array) -> Any:
        return call(target, result, *args, padding=padding, max_width=np.int64(_conv2d_cpp.MAX_WIDTH))

    return run(*args)
