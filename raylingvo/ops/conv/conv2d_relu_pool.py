"""2-D convolution, ReLU and 2x2 max-pooling as one op. Its gradients cost about a quarter of a convolution's."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from raylingvo.ops._native import Implementation, dispatch
from raylingvo.ops.conv import _conv2d_relu_pool_cpp, _conv2d_relu_pool_xla
from raylingvo.ops.conv._conv2d_window import (
    Padding,
    Window,
    check_images_and_kernel,
    implementation_for,
    resolve_window,
)

# N images of H x W pixels and C channels; kernel of Kh x Kw pixels, F filters; h x w pooling windows.


def conv2d_relu_pool(
    x_NxHxWxC: Any,
    kernel_KhxKwxCxF: Any,
    *,
    padding: Padding = "SAME",
    implementation: Implementation = "auto",
) -> jax.Array:
    """max_pool(relu(convolution)): stride 1, then 2x2 windows of stride 2.

    Where several outputs of a window are its maximum, they get equal shares of the gradient: on flat areas of an image
    ties are the rule. (XLA's own pooling gives it all to the first.) A window whose maximum is not positive has none.
    NaN counts as the maximum, so it is not hidden. Differentiable once, in reverse mode.

    Args:
      x_NxHxWxC: f32 images, N >= 0; none of the other sizes is 0. bf16 and other float types are left to "xla".
      kernel_KhxKwxCxF: of the same dtype.
      padding: as of `conv2d`.
      implementation: "auto", "xla", or "cpp", which is for float32 on CPUs.

    Returns:
      [N, h, w, F] of the same dtype. The last row or column of an odd number of them is not pooled.

    Raises:
      ValueError: shapes, dtypes or an argument are wrong, or the convolution would have no pixels.
      RuntimeError: implementation="cpp" where there is none.
    """
    x_NxHxWxC, kernel_KhxKwxCxF = jnp.asarray(x_NxHxWxC), jnp.asarray(kernel_KhxKwxCxF)
    check_images_and_kernel(x_NxHxWxC, kernel_KhxKwxCxF)
    window = resolve_window(x_NxHxWxC.shape, kernel_KhxKwxCxF.shape, (1, 1), padding, (1, 1))
    return _conv2d_relu_pool(x_NxHxWxC, kernel_KhxKwxCxF, window, implementation_for(x_NxHxWxC, implementation))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d_relu_pool(x: jax.Array, kernel: jax.Array, window: Window, implementation: Implementation) -> jax.Array:
    return _forward(x, kernel, window, implementation)[0]


@functools.partial(jax.jit, static_argnums=(2, 3))
def _forward(x: jax.Array, kernel: jax.Array, window: Window, implementation: Implementation) -> Any:
    y, which = dispatch(
        implementation,
        xla=_conv2d_relu_pool_xla.forward,
        cpp=_conv2d_relu_pool_cpp.forward,
        args=(x, kernel),
        window=window,
    )
    return y, (x, kernel, which)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _backward(window: Window, implementation: Implementation, residuals: Any, grad: jax.Array) -> Any:
    x, kernel, which = residuals
    # Two ops: a gradient that nobody reads, as that of the images, is not computed.
    x_grad = dispatch(
        implementation,
        xla=_conv2d_relu_pool_xla.input_grad,
        cpp=_conv2d_relu_pool_cpp.input_grad,
        args=(grad, kernel, which),
        shape=x.shape,
        window=window,
    )
    kernel_grad = dispatch(
        implementation,
        xla=_conv2d_relu_pool_xla.kernel_grad,
        cpp=_conv2d_relu_pool_cpp.kernel_grad,
        args=(x, grad, which),
        shape=kernel.shape,
        window=window,
    )
    return x_grad, kernel_grad


_conv2d_relu_pool.defvjp(_forward, _backward)
