"""Normalisation over features: layer norm and RMS norm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from raylingvo.models.layers.initializers import constant, zeros
from raylingvo.models.layers.variables import param


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) over the last axis, times the scale, plus the bias.

    epsilon: > 0. center: False: the mean counts as 0 in both places. use_bias: a trained bias, at first 0.
    direct_scale: the variable `scale` is the scale, at first 1; otherwise it is the scale - 1, at first 0, so that
    weight decay draws the scale to 1. dtype: of the result; statistics are float32.
    Raises ValueError if epsilon is not > 0. Source: Lingvo core/layers.py, LayerNorm.
    """

    def __init__(
        self,
        features: int,
        *,
        rngs: nnx.Rngs,
        epsilon: float = 1e-6,
        center: bool = True,
        use_bias: bool = True,
        direct_scale: bool = False,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        check_epsilon(epsilon)
        self.epsilon, self.center, self.direct_scale, self.dtype = epsilon, center, direct_scale, dtype
        self.scale = param(rngs, constant(1.0) if direct_scale else zeros, (features,), ("embed",))
        if use_bias:
            self.bias = param(rngs, zeros, (features,), ("embed",))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        x = x.astype(jnp.float32)
        if self.center:
            x = x - x.mean(-1, keepdims=True)
        scale = along_last(self.scale[...] if self.direct_scale else 1 + self.scale[...], x)
        y = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon) * scale
        if hasattr(self, "bias"):
            y = y + along_last(self.bias[...], x)
        return y.astype(self.dtype)


class RmsNorm(LayerNorm):
    """x / sqrt(mean(x^2) + epsilon) over the last axis, times the scale (Zhang & Sennrich 2019). No bias.

    Arguments as those of `LayerNorm`.
    """

    def __init__(
        self,
        features: int,
        *,
        rngs: nnx.Rngs,
        epsilon: float = 1e-6,
        direct_scale: bool = False,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        super().__init__(
            features,
            rngs=rngs,
            epsilon=epsilon,
            center=False,
            use_bias=False,
            direct_scale=direct_scale,
            dtype=dtype,
        )


def along_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    """[D] as [1, ..., 1, D], of the rank of x."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def check_epsilon(epsilon: float) -> None:
    """Raises ValueError if epsilon is not > 0."""
    if epsilon <= 0:
        raise ValueError(f"epsilon must be > 0 (got {epsilon})")
