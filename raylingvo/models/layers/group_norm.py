"""Group normalisation that leaves out padded frames, of the whole sequence or of what came so far."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from raylingvo.models.layers.initializers import zeros
from raylingvo.models.layers.normalization import along_last, check_epsilon
from raylingvo.models.layers.variables import param

# B examples of T frames, C channels in G groups of K.


class GroupNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) in each group of channels of each example, times 1 + scale, plus the bias.

    num_groups: G; if there are fewer channels, or groups would be smaller than min_group_size, then there are fewer.
    cumulative: mean and variance at a frame are those of the frames up to it, and the deviation of each of these
      frames is that from the mean up to it.
    dtype: of the result; statistics are float32.
    Raises ValueError if the groups are not equally large or epsilon is not > 0.
    Source: Lingvo core/bn_layers.py, GroupNormLayer.
    """

    def __init__(
        self,
        features: int,
        *,
        rngs: nnx.Rngs,
        num_groups: int = 32,
        min_group_size: int = 1,
        cumulative: bool = False,
        epsilon: float = 1e-3,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        check_epsilon(epsilon)
        if num_groups < 1 or min_group_size < 1:
            raise ValueError(f"num_groups and min_group_size must be >= 1 (got {num_groups} and {min_group_size})")
        self.group_size = max(features // num_groups, min_group_size)
        if features % self.group_size:
            raise ValueError(f"features must be divisible by the size of a group, {self.group_size} (got {features})")
        self.cumulative, self.epsilon, self.dtype = cumulative, epsilon, dtype
        self.scale = param(rngs, zeros, (features,), ("embed",))
        self.bias = param(rngs, zeros, (features,), ("embed",))

    def __call__(self, x: jax.Array, paddings_BxT: jax.Array | None = None) -> jax.Array:
        """[B, T, ..., C] -> [B, T, ..., C]; padded frames have results, too. paddings: 1.0 = padded."""
        x_BxTxNxGxK = x.astype(jnp.float32).reshape(*x.shape[:2], -1, x.shape[-1] // self.group_size, self.group_size)
        kept = jnp.ones(x.shape[:2], bool) if paddings_BxT is None else paddings_BxT <= 0
        kept_BxTx1x1x1 = kept[:, :, None, None, None]
        count = jnp.maximum(self._total(kept_BxTx1x1x1) * (x_BxTxNxGxK.shape[2] * self.group_size), 1)
        mean = self._total(jnp.where(kept_BxTx1x1x1, x_BxTxNxGxK, 0.0)) / count
        centered = x_BxTxNxGxK - mean
        variance = self._total(jnp.where(kept_BxTx1x1x1, jnp.square(centered), 0.0)) / count
        y = (centered * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        return (y * along_last(1 + self.scale[...], x) + along_last(self.bias[...], x)).astype(self.dtype)

    def _total(self, x_BxTxNxGxK: jax.Array) -> jax.Array:
        """[B, T or 1, 1, G, 1]: the sum over what has the same statistics."""
        if self.cumulative:
            return x_BxTxNxGxK.sum((2, 4), keepdims=True).cumsum(1)
        return x_BxTxNxGxK.sum((1, 2, 4), keepdims=True)
