"""What convolutions are asked for, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from raylingvo.ops._native import Implementation

Padding = Literal["SAME", "VALID"] | Sequence[tuple[int, int]]


class Window(NamedTuple):
    """How the kernel moves over the image; rows, then columns."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]

    def result_size(self, x_shape: Sequence[int], kernel_shape: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the convolution's result."""
        rows, columns = (
            (size + sum(pad) - (k - 1) * dilation - 1) // stride + 1
            for size, k, stride, pad, dilation in zip(x_shape[1:3], kernel_shape[:2], *self, strict=True)
        )
        return rows, columns


def check_images_and_kernel(x_NxHxWxC: jax.Array, kernel_KhxKwxCxF: jax.Array) -> None:
    """Raises ValueError unless the kernel is for such images."""
    for name, array in (("x", x_NxHxWxC), ("kernel", kernel_KhxKwxCxF)):
        if array.ndim != 4 or not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} must be floats of 4 dimensions (got {array.dtype}{list(array.shape)})")
    if 0 in (*x_NxHxWxC.shape[1:], *kernel_KhxKwxCxF.shape):
        shapes = f"x {list(x_NxHxWxC.shape)}, kernel {list(kernel_KhxKwxCxF.shape)}"
        raise ValueError(f"x and kernel must not be empty, but for the number of images (got {shapes})")
    if x_NxHxWxC.shape[3] != kernel_KhxKwxCxF.shape[2]:
        channels = kernel_KhxKwxCxF.shape[2]
        raise ValueError(f"x must have the kernel's {channels} channels (got shape {list(x_NxHxWxC.shape)})")
    if x_NxHxWxC.dtype != kernel_KhxKwxCxF.dtype:
        raise ValueError(f"kernel must be {x_NxHxWxC.dtype}, as x (got {kernel_KhxKwxCxF.dtype})")


def resolve_window(
    x_shape: Sequence[int], kernel_shape: Sequence[int], strides: Any, padding: Any, dilation: Any
) -> Window:
    """Checks the arguments; padding becomes numbers."""
    strides, dilation = _pair("strides", strides, 1), _pair("dilation", dilation, 1)
    sizes = tuple(x_shape[1:3])
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel_shape[:2], dilation, strict=True))
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f"padding must be 'SAME', 'VALID' or two pairs of integers (got {padding!r})")
        rows, columns = lax.padtype_to_pads(sizes, spans, strides, padding)
    else:
        try:
            rows, columns = padding
        except (TypeError, ValueError):
            raise ValueError(f"padding must be 'SAME', 'VALID' or two pairs of integers (got {padding!r})") from None
    pairs = _pair("padding[0]", rows, 0), _pair("padding[1]", columns, 0)
    for name, size, (before, after), span in zip(("rows", "columns"), sizes, pairs, spans, strict=True):
        if size + before + after < span:
            raise ValueError(
                f"the result would have no {name}: x has {size}, padding adds {before} + {after}, "
                f"and the dilated kernel spans {span}; pad more"
            )
    return Window(strides, pairs, dilation)


def implementation_for(x: jax.Array, implementation: Implementation) -> Implementation:
    """The C++ ops are for float32."""
    if x.dtype == jnp.float32:
        return implementation
    if implementation == "cpp":
        raise ValueError(f"implementation='cpp' needs float32 (got {x.dtype}); use 'auto' or 'xla'")
    return "xla" if implementation == "auto" else implementation


def _pair(name: str, values: Any, least: int) -> tuple[int, int]:
    try:
        first, second = (int(value) for value in values)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a pair of integers (got {values!r})") from None
    if min(first, second) < least or (first, second) != tuple(values):
        raise ValueError(f"{name} must be a pair of integers >= {least} (got {values!r})")
    return first, second
