"""`conv2d` and its gradients in C++ (csrc/conv2d.cc)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap

from raylingvo.ops._native import call
from raylingvo.ops.conv._conv2d_window import Window

# Floats in the widest registers that may be used, of those that the machine has. Tests lower it.
MAX_WIDTH = 16


def forward(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    h, w = window.result_size(x.shape, kernel.shape)
    return _call("RaylingvoConv2d", (x.shape[0], h, w, kernel.shape[3]), x, kernel, window)


def input_grad(grad: jax.Array, kernel: jax.Array, shape: tuple[int, ...], window: Window) -> jax.Array:
    return _call("RaylingvoConv2dInputGrad", shape, grad, kernel, window)


def kernel_grad(x: jax.Array, grad: jax.Array, shape: tuple[int, ...], window: Window) -> jax.Array:
    return _call("RaylingvoConv2dKernelGrad", shape, x, grad, window)


def _call(target: str, shape: tuple[int, ...], a: jax.Array, b: jax.Array, window: Window) -> jax.Array:
    (top, _), (left, _) = window.padding
    numbers = np.array([*window.strides, top, left, *window.dilation], np.int64)

    # Under vmap, one call for each element: kernels differ.
    @sequential_vmap
    def run(a: jax.Array, b: jax.Array) -> jax.Array:
        return call(
            target, jax.ShapeDtypeStruct(shape, jnp.float32), a, b, window=numbers, max_width=np.int64(MAX_WIDTH)
        )

    return run(a, b)
