"""`conv2d` and its gradients by XLA."""

from __future__ import annotations

import jax
from jax import lax

from raylingvo.ops.conv._conv2d_window import Window


def forward(x_NxHxWxC: jax.Array, kernel_KhxKwxCxF: jax.Array, window: Window) -> jax.Array:
    """XLA's own convolution."""
    return lax.conv_general_dilated(
        x_NxHxWxC,
        kernel_KhxKwxCxF,
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def input_grad(grad: jax.Array, kernel: jax.Array, shape: tuple[int, ...], window: Window) -> jax.Array:
    """The gradient of `forward` with respect to x, of this shape."""
    x = jax.ShapeDtypeStruct(shape, grad.dtype)
    return jax.linear_transpose(lambda x: forward(x, kernel, window), x)(grad)[0]


def kernel_grad(x: jax.Array, grad: jax.Array, shape: tuple[int, ...], window: Window) -> jax.Array:
    """The gradient of `forward` with respect to the kernel, of this shape."""
    kernel = jax.ShapeDtypeStruct(shape, grad.dtype)
    return jax.linear_transpose(lambda kernel: forward(x, kernel, window), kernel)(grad)[0]
