"""Batch normalisation that leaves out padded positions."""

from __future__ import annotations

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from raylingvo.models.layers.initializers import constant, zeros
from raylingvo.models.layers.normalization import along_last, check_epsilon
from raylingvo.models.layers.variables import param

# B examples of T frames, C channels.

Statistics = Literal["batch", "moving", "frozen"]


class BatchNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) for each channel, times the scale, plus the bias.

    Mean and variance are those of all positions of the batch that are not padded; outside training, their moving
    averages (`mean` and `variance`, nnx.BatchStat), which each call in training moves by 1 - decay. Under jit with
    arrays over several devices, the batch is the whole one.

    statistics: in training, "batch"; "moving": the moving averages as they were before, which then move
      (Lingvo's use_moving_avg_in_training, together with affine=False); "frozen": they are used, and do not move
      (freeze_bn_stats).
    affine: there are a scale and a bias. direct_scale: the variable `scale` is the scale; otherwise the scale - 1.
    initial_scale: of the scale.
    zero_padded: the result is 0 where padded.
    dtype: of the result; statistics are float32.
    Raises ValueError for a decay not in [0, 1], an epsilon not > 0, or other statistics.
    Source: Lingvo core/bn_layers.py, BatchNormLayer.
    """

    def __init__(
        self,
        features: int,
        *,
        rngs: nnx.Rngs,
        decay: float = 0.999,
        epsilon: float = 1e-3,
        statistics: Statistics = "batch",
        affine: bool = True,
        direct_scale: bool = False,
        initial_scale: float = 1.0,
        zero_padded: bool = True,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        check_epsilon(epsilon)
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must be in [0, 1] (got {decay})")
        if statistics not in get_args(Statistics):
            raise ValueError(f"statistics must be one of {', '.join(get_args(Statistics))} (got {statistics!r})")
        self.decay, self.epsilon, self.statistics, self.direct_scale = decay, epsilon, statistics, direct_scale
        self.zero_padded, self.dtype = zero_padded, dtype
        if affine:
            self.scale = param(rngs, constant(initial_scale - (not direct_scale)), (features,), ("embed",))
            self.bias = param(rngs, zeros, (features,), ("embed",))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.variance = nnx.BatchStat(jnp.ones(features))

    def __call__(self, x: jax.Array, paddings: jax.Array | None = None, *, training: bool = False) -> jax.Array:
        """[B, T, ..., C] -> [B, T, ..., C]. paddings: [B, T], or more of the leading axes of x; 1.0 = padded."""
        kept = None if paddings is None else (paddings <= 0).reshape(paddings.shape + (1,) * (x.ndim - paddings.ndim))
        x = x.astype(jnp.float32)
        mean, variance = self.mean[...], self.variance[...]
        if training and self.statistics != "frozen":
            batch_mean, batch_variance = _moments(x, kept)
            self.mean[...] = _move(mean, batch_mean, self.decay)
            self.variance[...] = _move(variance, batch_variance, self.decay)
            if self.statistics == "batch":
                mean, variance = batch_mean, batch_variance
        factor = jax.lax.rsqrt(variance + self.epsilon)
        if hasattr(self, "scale"):
            factor = factor * (self.scale[...] if self.direct_scale else 1 + self.scale[...])
        y = (x - along_last(mean, x)) * along_last(factor, x)
        if hasattr(self, "bias"):
            y = y + along_last(self.bias[...], x)
        if kept is not None and self.zero_padded:
            y = jnp.where(kept, y, 0.0)
        return y.astype(self.dtype)


def _moments(x: jax.Array, kept: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of each channel. Where every position is padded, both are 0."""
    axes = tuple(range(x.ndim - 1))
    if kept is None:
        return x.mean(axes), x.var(axes)
    count = jnp.maximum(kept.sum() * math.prod(x.shape[:-1]) / math.prod(kept.shape), 1)
    mean = jnp.where(kept, x, 0.0).sum(axes) / count
    return mean, jnp.where(kept, jnp.square(x - along_last(mean, x)), 0.0).sum(axes) / count


def _move(average: jax.Array, new: jax.Array, decay: float) -> jax.Array:
    return average * decay + jax.lax.stop_gradient(new) * (1 - decay)
