"""`conv2d_relu_pool` and its gradients by XLA: its own convolution or, on a CPU, one matrix product.

The four outputs that one pooling window covers read one (K+1)x(K+1) patch of the image. With a row for each window and
the kernel written four times, at the four offsets, into a (K+1)^2*C x 4*F matrix, the convolution is one product, the
pooling is a maximum over its columns, and no window overlaps another in the output. Compared with a row for each pixel,
that is (K+1)^2/K^2 of the arithmetic (1.44 for K=5), but only 0.36 of the patch matrix, and a product four times wider.

Measured on 2 CPU cores (AVX2, no AVX-512), LeNet-5's train step, batch 256, speed relative to lax.conv_general_dilated,
nnx.max_pool and autodiff: this 2.0. Tried and dropped: lax convolutions with this pooling 1.05; a matrix row for each
pixel 1.14; five products, of rows shifted in height, 1.28; windows of 1x2 or 2x1 outputs 1.75; this in blocks of 16 to
256 images 2.0. Most of what is gained is the kernel gradient of 20 -> 50 channels, a fifth of its time in lax.

Shapes: N images, H rows, W columns, C input channels, F filters, Kh x Kw kernel, h x w pooling windows,
P = (Kh+1)*(Kw+1)*C elements of a patch, 4 outputs of a pooling window in row-major order.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from raylingvo.ops.conv import _conv2d_xla
from raylingvo.ops.conv._conv2d_window import Window


def forward(x: jax.Array, kernel: jax.Array, window: Window) -> tuple[jax.Array, jax.Array]:
    """The result, and of which outputs of its pooling window it is the maximum: u8, bit i for output i."""
    y_Nxhxwx4xF = _outputs_of_windows(x, kernel, window)
    outputs = [y_Nxhxwx4xF[..., i, :] for i in range(4)]  # pairwise: XLA vectorises this, not a reduction over 4
    max_NxhxwxF = jnp.maximum(jnp.maximum(outputs[0], outputs[1]), jnp.maximum(outputs[2], outputs[3]))
    # Not "== max", so that NaN is the maximum.
    bits = [(~(output < max_NxhxwxF)).astype(jnp.uint8) << i for i, output in enumerate(outputs)]
    which_NxhxwxF = jnp.where(max_NxhxwxF <= 0, jnp.uint8(0), bits[0] | bits[1] | bits[2] | bits[3])
    return jax.nn.relu(max_NxhxwxF), which_NxhxwxF


def input_grad(
    grad: jax.Array, kernel: jax.Array, which: jax.Array, shape: tuple[int, ...], window: Window
) -> jax.Array:
    x = jax.ShapeDtypeStruct(shape, grad.dtype)
    outputs = functools.partial(_outputs_of_windows, kernel=kernel, window=window)
    return jax.linear_transpose(outputs, x)(_shares(grad, which))[0]


def kernel_grad(x: jax.Array, grad: jax.Array, which: jax.Array, shape: tuple[int, ...], window: Window) -> jax.Array:
    kernel = jax.ShapeDtypeStruct(shape, grad.dtype)
    outputs = functools.partial(_outputs_of_windows, x, window=window)
    return jax.linear_transpose(outputs, kernel)(_shares(grad, which))[0]


def _shares(grad_NxhxwxF: jax.Array, which_NxhxwxF: jax.Array) -> jax.Array:
    """The gradient of each output of a pooling window: [N, h, w, 4, F]."""
    count_NxhxwxF = jnp.maximum(jax.lax.population_count(which_NxhxwxF), 1).astype(grad_NxhxwxF.dtype)
    share_NxhxwxF = grad_NxhxwxF / count_NxhxwxF
    is_max_Nxhxwx4xF = jnp.stack([(which_NxhxwxF >> i & 1) == 1 for i in range(4)], axis=-2)
    return jnp.where(is_max_Nxhxwx4xF, share_NxhxwxF[..., None, :], 0)


def _outputs_of_windows(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """The convolution, arranged by pooling windows: [N, h, w, 4, F]. Linear in x and in kernel."""
    # Chosen when lowered, so that compiling ahead of time for another platform gets that platform's version.
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_by_matmul, window=window),
        default=functools.partial(_by_convolution, window=window),
    )


def _by_convolution(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """For accelerators, whose own convolutions are fast."""
    y_NxHxWxF = _conv2d_xla.forward(x, kernel, window)
    N, H, W, F = y_NxHxWxF.shape
    h, w = H // 2, W // 2
    y_Nxhx2xwx2xF = y_NxHxWxF[:, : 2 * h, : 2 * w].reshape(N, h, 2, w, 2, F)
    return y_Nxhx2xwx2xF.swapaxes(2, 3).reshape(N, h, w, 4, F)


def _by_matmul(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """For CPUs."""
    F = kernel.shape[3]
    h, w = (size // 2 for size in window.result_size(x.shape, kernel.shape))
    y_Mx4F = _patches(x, kernel.shape, window) @ _kernel_at_four_offsets(kernel)
    return y_Mx4F.reshape(x.shape[0], h, w, 4, F)


def _patches(x_NxHxWxC: jax.Array, kernel_shape: tuple[int, ...], window: Window) -> jax.Array:
    """What each pooling window sees: [N*h*w, P]. Slices of 2-pixel columns: long enough runs to copy fast."""
    N, H, W, C = x_NxHxWxC.shape
    Kh, Kw = kernel_shape[:2]
    h, w = (size // 2 for size in window.result_size(x_NxHxWxC.shape, kernel_shape))
    # Rows and columns in pairs: those that windows see, and one more where a patch has an odd number of them.
    pairs_h, pairs_w = h + (Kh + 1) // 2, w + (Kw + 1) // 2
    (top, _), (left, _) = window.padding
    padded = lax.pad(
        x_NxHxWxC,
        jnp.zeros((), x_NxHxWxC.dtype),
        [(0, 0, 0), (top, 2 * pairs_h - H - top, 0), (left, 2 * pairs_w - W - left, 0), (0, 0, 0)],
    )
    blocks = padded.reshape(N, pairs_h, 2, pairs_w, 2 * C)
    slices = []
    for row in range(Kh + 1):
        columns = [blocks[:, row // 2 : row // 2 + h, row % 2, j : j + w] for j in range((Kw + 2) // 2)]
        slices.append(jnp.concatenate(columns, axis=-1)[..., : (Kw + 1) * C])
    return jnp.concatenate(slices, axis=-1).reshape(N * h * w, (Kh + 1) * (Kw + 1) * C)


def _kernel_at_four_offsets(kernel_KhxKwxCxF: jax.Array) -> jax.Array:
    """[P, 4*F]: the kernel in each corner of a (Kh+1)x(Kw+1) rectangle of zeros."""
    F = kernel_KhxKwxCxF.shape[-1]
    corners = [jnp.pad(kernel_KhxKwxCxF, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i in (0, 1) for j in (0, 1)]
    return jnp.stack(corners, axis=3).reshape(-1, 4 * F)
