"""Convolutions over padded sequences, of all channels or of each on its own."""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from raylingvo.models.layers.initializers import Initializer, xavier, zeros
from raylingvo.models.layers.normalization import along_last
from raylingvo.models.layers.time_windows import TimeWindow, zero_padded
from raylingvo.models.layers.variables import param
from raylingvo.ops.conv.conv2d import conv2d

# B sequences of T frames with F columns (frequencies) of C channels; t, f, D of the result; Kh x Kw windows.

_TINY = 1e-12  # tf.nn.l2_normalize's


class _PaddedConv(nnx.Module):
    def __init__(
        self,
        kernel_shape: tuple[int, int, int, int],
        out_features: int,
        window: TimeWindow,
        *,
        rngs: nnx.Rngs,
        bias: bool,
        partial: bool,
        weight_norm: bool,
        kernel_init: Initializer | None,
        dtype: DTypeLike,
    ) -> None:
        self.window, self.partial, self.dtype = window, partial, dtype
        self.kernel = param(rngs, kernel_init or xavier(), kernel_shape, (None, None, "in", "out"))
        if weight_norm:
            self.scale = param(rngs, zeros, (out_features,), ("out",))
        if bias:
            self.bias = param(rngs, zeros, (out_features,), ("out",))

    def __call__(
        self, x_BxTxFxC: jax.Array, paddings_BxT: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """[B, t, f, D] and, of the result, the paddings f32[B, t] (None without paddings); t = ceil(T / stride).

        Padded frames count as 0. Padded frames of the result are not 0: those near the end look back, and the bias is
        in all of them.
        """
        x = zero_padded(x_BxTxFxC.astype(self.dtype), paddings_BxT)
        y = self._convolve(x, self._kernel().astype(self.dtype))
        bias = along_last(self.bias[...].astype(self.dtype), y) if hasattr(self, "bias") else jnp.zeros((), y.dtype)
        if self.partial:
            paddings = jnp.zeros(x.shape[:2]) if paddings_BxT is None else paddings_BxT
            ratio = self.window.missing_ratio(paddings)[:, :, None, None].astype(self.dtype)
            y = y * ratio + (bias * ratio if self.window.compat == "lingvo" else bias)
        else:
            y = y + bias
        return y, None if paddings_BxT is None else self.window.paddings(paddings_BxT)

    @abc.abstractmethod
    def _kernel(self) -> jax.Array:
        """The kernel, normalised if it is to be."""

    @abc.abstractmethod
    def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """[B, T, F, C] -> [B, t, f, D]."""


class PaddedConv2D(_PaddedConv):
    """Convolution over frames and columns.

    Variables: kernel f32[Kh, Kw, C, D]; bias f32[D]; scale f32[D].
    window: `TimeWindow`; causal or not, windows lie around their column.
    partial: sums are multiplied by Kh / number of frames of the window that are in the sequence, before the bias is
      added (partial convolution, Liu et al. 2018; columns outside count as they are). With a window of compat="lingvo",
      after it is added.
    weight_norm: the kernel of each output is normalised, times 1 + scale (Salimans & Kingma 2016).
    dtype: of the computation; weights are float32.
    Source: Lingvo core/conv_layers_with_time_padding.py, Conv2DLayerWithPadding and CausalConv2DLayerWithPadding.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        window: TimeWindow,
        *,
        rngs: nnx.Rngs,
        bias: bool = False,
        partial: bool = False,
        weight_norm: bool = False,
        kernel_init: Initializer | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        super().__init__(
            (*window.size, in_features, out_features),
            out_features,
            window,
            rngs=rngs,
            bias=bias,
            partial=partial,
            weight_norm=weight_norm,
            kernel_init=kernel_init,
            dtype=dtype,
        )

    def _kernel(self) -> jax.Array:
        kernel = self.kernel[...]
        if hasattr(self, "scale"):
            kernel = _normalize(kernel, (0, 1, 2)) * along_last(1 + self.scale[...], kernel)
        return kernel

    def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        window = self.window
        return conv2d(x, kernel, strides=window.stride, padding=window.padding(*x.shape[1:3]), dilation=window.dilation)


class DepthwiseConv2D(_PaddedConv):
    """Convolution of each channel on its own, with `multiplier` results for each.

    Variables: kernel f32[Kh, Kw, C, multiplier]; bias f32[C * multiplier]; scale f32[C * multiplier]. Result
    c * multiplier + i is that of channel c. Other arguments as those of `PaddedConv2D`.
    Source: Lingvo core/conv_layers_with_time_padding.py, DepthwiseConv2DLayer and CausalDepthwiseConv2DLayer.
    """

    def __init__(
        self,
        in_features: int,
        window: TimeWindow,
        *,
        rngs: nnx.Rngs,
        multiplier: int = 1,
        bias: bool = False,
        partial: bool = False,
        weight_norm: bool = False,
        kernel_init: Initializer | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        super().__init__(
            (*window.size, in_features, multiplier),
            in_features * multiplier,
            window,
            rngs=rngs,
            bias=bias,
            partial=partial,
            weight_norm=weight_norm,
            kernel_init=kernel_init,
            dtype=dtype,
        )

    def _kernel(self) -> jax.Array:
        kernel = self.kernel[...]
        if hasattr(self, "scale"):
            kernel = _normalize(kernel, (0, 1)) * (1 + self.scale[...]).reshape(1, 1, *kernel.shape[2:])
        return kernel

    def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        # A sum of shifted products, which XLA makes one loop of: its own grouped convolution is slow on CPUs.
        (rows, columns), (down, across), dilation = self.window.size, self.window.stride, self.window.dilation
        padding = self.window.padding(*x.shape[1:3])
        bottom, right = ((-(-n // s) - 1) * s + 1 for n, s in zip(x.shape[1:3], (down, across), strict=True))
        padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))[..., None]
        y = jnp.zeros((), x.dtype)
        for i in range(rows):
            for j in range(columns):
                top, left = i * dilation[0], j * dilation[1]
                y += padded[:, top : top + bottom : down, left : left + right : across] * kernel[i, j][None, None, None]
        return y.reshape(*y.shape[:3], -1)


def _normalize(kernel: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return kernel * jax.lax.rsqrt(jnp.maximum(jnp.square(kernel).sum(axes, keepdims=True), _TINY))
