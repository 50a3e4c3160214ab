"""2-D convolution, and both its gradients, made for CPUs; other devices use XLA's."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from raylingvo.ops._native import Implementation, dispatch
from raylingvo.ops.conv import _conv2d_cpp, _conv2d_xla
from raylingvo.ops.conv._conv2d_window import (
    Padding,
    Window,
    check_images_and_kernel,
    implementation_for,
    resolve_window,
)

# N images of H x W pixels and C channels; kernel of Kh x Kw pixels, F filters; h x w pixels of the result.

# With so few channels, most of a register of the C++ input gradient is empty, and XLA's is up to twice as fast.
_FEW_CHANNELS = 3


def conv2d(
    x_NxHxWxC: Any,
    kernel_KhxKwxCxF: Any,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    dilation: tuple[int, int] = (1, 1),
    implementation: Implementation = "auto",
) -> jax.Array:
    """Convolution as networks have it (cross-correlation), summed over channels.

    "cpp" and "auto" have their own gradients with respect to both arguments, and are differentiable once, in reverse
    mode; "xla" is lax.conv_general_dilated, and differentiable as that is. They sum in another order, and so differ by
    rounding.

    Args:
      x_NxHxWxC: f32 images, N >= 0; none of the other sizes is 0. bf16 and other float types are left to "xla".
      kernel_KhxKwxCxF: of the same dtype.
      strides: >= 1, of rows and columns.
      padding: "SAME" (a result of ceil(H / stride) rows, what is odd goes after), "VALID" (none), or
        ((before, after), (before, after)) zeros, each >= 0.
      dilation: >= 1, the distance of neighbouring kernel pixels in the image.
      implementation: "auto", "xla", or "cpp", which is for float32 on CPUs.

    Returns:
      [N, h, w, F] of the same dtype, h = (H + before + after - (Kh - 1) * dilation - 1) // stride + 1, w likewise.

    Raises:
      ValueError: shapes, dtypes or an argument are wrong, or the result would have no pixels.
      RuntimeError: implementation="cpp" where there is none.
    """
    x_NxHxWxC, kernel_KhxKwxCxF = jnp.asarray(x_NxHxWxC), jnp.asarray(kernel_KhxKwxCxF)
    check_images_and_kernel(x_NxHxWxC, kernel_KhxKwxCxF)
    window = resolve_window(x_NxHxWxC.shape, kernel_KhxKwxCxF.shape, strides, padding, dilation)
    implementation = implementation_for(x_NxHxWxC, implementation)
    if implementation == "xla":
        return _conv2d_xla.forward(x_NxHxWxC, kernel_KhxKwxCxF, window)
    return _conv2d(x_NxHxWxC, kernel_KhxKwxCxF, window, implementation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
@functools.partial(jax.jit, static_argnums=(2, 3))
def _conv2d(x: jax.Array, kernel: jax.Array, window: Window, implementation: Implementation) -> jax.Array:
    return dispatch(implementation, xla=_conv2d_xla.forward, cpp=_conv2d_cpp.forward, args=(x, kernel), window=window)


def _forward(x: jax.Array, kernel: jax.Array, window: Window, implementation: Implementation) -> Any:
    return _conv2d(x, kernel, window, implementation), (x, kernel)


def _backward(window: Window, implementation: Implementation, residuals: Any, grad: jax.Array) -> Any:
    x, kernel = residuals
    # Two ops: a gradient that nobody reads, as that of the images, is not computed.
    few_channels = implementation == "auto" and x.shape[3] <= _FEW_CHANNELS
    x_grad = dispatch(
        "xla" if few_channels else implementation,
        xla=_conv2d_xla.input_grad,
        cpp=_conv2d_cpp.input_grad,
        args=(grad, kernel),
        shape=x.shape,
        window=window,
    )
    kernel_grad = dispatch(
        implementation,
        xla=_conv2d_xla.kernel_grad,
        cpp=_conv2d_cpp.kernel_grad,
        args=(x, grad),
        shape=kernel.shape,
        window=window,
    )
    return x_grad, kernel_grad


_conv2d.defvjp(_forward, _backward)
