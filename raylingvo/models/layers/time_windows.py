"""Windows of convolutions over padded sequences: where they lie, and which results are padded.

B sequences of T frames, t frames of the result.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp

Align = Literal["same", "first"]
Compat = Literal["lingvo"] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeWindow:
    """A convolution's windows: of rows (frames) and columns.

    size, stride, dilation: of rows and columns, >= 1.
    causal: a window ends with its frame; otherwise windows lie around it.
    align: with a stride, "same" is TensorFlow's padding "SAME": where windows begin depends on T, and so on how much
      padding a batch has; a result is padded if any of the `stride` frames that it stands for is, or is missing.
      "first": windows lie around frames 0, stride, 2 * stride, ..., and a result is padded if that frame is.
      (Lingvo's v2_padding.)
    compat: "lingvo": as Lingvo has them, causal windows of an odd number of columns lie one column further right, and
      `missing_ratio` counts frames around 0, stride, 2 * stride, ..., wherever windows lie.
    """

    size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    causal: bool = False
    align: Align = "same"
    compat: Compat = None

    def __post_init__(self) -> None:
        for name in ("size", "stride", "dilation"):
            if len(pair := getattr(self, name)) != 2 or min(pair) < 1:
                raise ValueError(f"{name} must be two numbers >= 1 (got {pair})")
        if self.align not in get_args(Align):
            raise ValueError(f"align must be one of {', '.join(get_args(Align))} (got {self.align!r})")
        if self.compat not in (None, "lingvo"):
            raise ValueError(f"compat must be None or 'lingvo' (got {self.compat!r})")

    def padding(self, rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Zeros before and after rows and columns, so that there are ceil(size / stride) results."""
        sides = _same(columns, self.size[1], self.stride[1], self.dilation[1])
        if self.compat == "lingvo" and self.causal and self.stride[1] == 1:
            left = max(sum(sides) - 1, 0) // 2
            sides = left, sum(sides) - left
        return self._rows(rows), sides

    def paddings(self, paddings_BxT: jax.Array) -> jax.Array:
        """f32[B, t]: which results are padded, from which frames are."""
        stride = self.stride[0]
        if stride == 1 or self.align == "first":
            return paddings_BxT[:, ::stride]
        missing = -paddings_BxT.shape[1] % stride
        whole = jnp.pad(paddings_BxT, ((0, 0), (0, missing)), constant_values=1.0)
        return whole.reshape(whole.shape[0], -1, stride).max(-1)

    def missing_ratio(self, paddings_BxT: jax.Array) -> jax.Array:
        """f32[B, t]: frames in a window / those of them that are in the sequence; 0 if none is."""
        size, stride, dilation = self.size[0], self.stride[0], self.dilation[0]
        length = paddings_BxT.shape[1]
        span = (size - 1) * dilation
        sides = self._rows(length) if self.compat is None else (span // 2, span)
        kept = jnp.pad((paddings_BxT <= 0).astype(jnp.float32), ((0, 0), sides))
        last = (-(-length // stride) - 1) * stride + 1
        windows = [kept[:, i * dilation : i * dilation + last : stride] for i in range(size)]
        count_Bxt = jnp.stack(windows).sum(0)
        return jnp.where(count_Bxt > 0, size / jnp.maximum(count_Bxt, 1), 0.0)

    def _rows(self, rows: int) -> tuple[int, int]:
        size, stride, dilation = self.size[0], self.stride[0], self.dilation[0]
        span = (size - 1) * dilation
        if not self.causal and self.align == "same":
            return _same(rows, size, stride, dilation)
        before = span if self.causal else span // 2
        last = (-(-rows // stride) - 1) * stride
        return before, max(last - before + span + 1 - rows, 0)


def zero_padded(x_BxTxFxC: jax.Array, paddings_BxT: jax.Array | None) -> jax.Array:
    """x, with zeros in padded frames."""
    if paddings_BxT is None:
        return x_BxTxFxC
    return jnp.where((paddings_BxT <= 0)[:, :, None, None], x_BxTxFxC, jnp.zeros((), x_BxTxFxC.dtype))


def _same(length: int, size: int, stride: int, dilation: int) -> tuple[int, int]:
    results = -(-length // stride)
    total = max((results - 1) * stride + (size - 1) * dilation + 1 - length, 0)
    return total // 2, total - total // 2
