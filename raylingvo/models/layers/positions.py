"""Position embeddings that are added to a sequence, or rotate queries and keys (Lingvo: core/layers.py).

B batch, T time, N heads, D model dimension, H dimension of a head.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from raylingvo.models.layers.initializers import gaussian, zeros
from raylingvo.models.layers.variables import Initializer, param


def _check_timescales(min_timescale: float, max_timescale: float) -> None:
    if not 0 < min_timescale <= max_timescale:
        raise ValueError(
            f"min_timescale must be > 0 and at most max_timescale (got {min_timescale} and {max_timescale})"
        )


def sinusoid(
    positions: jax.Array,
    dim: int,
    *,
    min_timescale: float = 1.0,
    max_timescale: float = 10000.0,
    frequency_scale: float | jax.Array = 1.0,
) -> jax.Array:
    """Sines, then cosines, of the positions at dim / 2 frequencies: f32[..., dim].

    positions: any number type, [...]. The frequencies are a geometric series, `min_timescale` times 1 down to
    min_timescale / max_timescale; `frequency_scale` multiplies all of them.
    Raises ValueError if dim is odd or the time scales are not ordered.
    Source: Lingvo PositionalEmbeddingLayer, which multiplies by `min_timescale` where its name lets one expect a
    division: with the default of 1 that is the same.
    """
    if dim <= 0 or dim % 2:
        raise ValueError(f"dim must be even and > 0 (got {dim})")
    _check_timescales(min_timescale, max_timescale)
    count = dim // 2
    # In float64: the angle of a late position must not depend on how a device computes exp.
    increment = np.log(max_timescale / min_timescale) / max(count - 1, 1)
    frequencies = (np.exp(-increment * np.arange(count)) * min_timescale).astype(np.float32)
    angles = positions[..., None].astype(jnp.float32) * jnp.reshape(frequencies, (1,) * positions.ndim + (count,))
    if not isinstance(frequency_scale, float) or frequency_scale != 1.0:
        angles = angles * frequency_scale
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def harmonics(length: int, dim: int) -> jax.Array:
    """Sines, then cosines, of the first dim / 2 harmonics of a sequence of this length: f32[length, dim].

    Source: Lingvo SinusoidalPositionalEmbeddingLayer. Raises ValueError if dim is odd.
    """
    if dim <= 0 or dim % 2:
        raise ValueError(f"dim must be even and > 0 (got {dim})")
    frequencies = np.arange(1, dim // 2 + 1, dtype=np.float32) * np.float32(2 * np.pi / length)
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class SinusoidalPositions(nnx.Module):
    """`sinusoid` with up to two trained numbers (Lingvo: PositionalEmbeddingLayer).

    scale: if given, the embedding is multiplied by `scale` + a trained f32[1] that starts at 0.
    frequency_scaling: the frequencies are multiplied by 1 + a trained f32[1] that starts at 0.
    """

    def __init__(
        self,
        dim: int,
        *,
        rngs: nnx.Rngs,
        min_timescale: float = 1.0,
        max_timescale: float = 10000.0,
        scale: float | None = None,
        frequency_scaling: bool = False,
    ) -> None:
        if dim <= 0 or dim % 2:
            raise ValueError(f"dim must be even and > 0 (got {dim})")
        _check_timescales(min_timescale, max_timescale)
        self.dim, self.min_timescale, self.max_timescale = dim, min_timescale, max_timescale
        self.initial_scale = scale
        self.scale = None if scale is None else param(rngs, zeros, (1,), (None,))
        self.frequency_scale = param(rngs, zeros, (1,), (None,)) if frequency_scaling else None

    def __call__(self, positions: jax.Array) -> jax.Array:
        """[...] -> f32[..., dim]."""
        embedding = sinusoid(
            positions,
            self.dim,
            min_timescale=self.min_timescale,
            max_timescale=self.max_timescale,
            frequency_scale=1.0 if self.frequency_scale is None else 1.0 + self.frequency_scale[...][0],
        )
        if self.scale is not None:
            embedding = embedding * (self.initial_scale + self.scale[...][0])
        return embedding


class LearnedPositions(nnx.Module):
    """A table f32[max_length, dim], N(0, 1) as in GShard unless told otherwise."""

    def __init__(self, max_length: int, dim: int, *, rngs: nnx.Rngs, initializer: Initializer | None = None) -> None:
        if max_length <= 0 or dim <= 0:
            raise ValueError(f"max_length and dim must be > 0 (got {max_length} and {dim})")
        self.table = param(rngs, initializer or gaussian(1.0), (max_length, dim), (None, "embed"))

    def __call__(self, positions: jax.Array) -> jax.Array:
        """i32[...] in [0, max_length) -> f32[..., dim]."""
        return jnp.take(self.table[...], positions, axis=0, mode="clip")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotation of queries and keys by their positions (RoFormer; Lingvo: RotaryPositionalEmbeddingLayer)."""

    min_timescale: float = 1.0
    max_timescale: float = 10000.0

    def __post_init__(self) -> None:
        _check_timescales(self.min_timescale, self.max_timescale)


def rotate(x_BxTxNxH: jax.Array, positions_BxT: jax.Array, rotary: Rotary) -> jax.Array:
    """Rotates each pair (x[h], x[h + H/2]) by position / time scale h: same shape and dtype as `x`.

    positions: [B or 1, T]. The time scales are min * (max / min) ** (2h / H). Raises ValueError if H is odd.
    """
    dim = x_BxTxNxH.shape[-1]
    if dim % 2:
        raise ValueError(f"the dimension of a head must be even to be rotated (got {dim})")
    fractions = np.arange(dim // 2) * 2 / dim
    timescales = rotary.min_timescale * (rotary.max_timescale / rotary.min_timescale) ** fractions
    angles = positions_BxT[:, :, None, None].astype(jnp.float32) * (1 / timescales).astype(np.float32).reshape(
        1, 1, 1, -1
    )
    sin, cos = jnp.sin(angles).astype(x_BxTxNxH.dtype), jnp.cos(angles).astype(x_BxTxNxH.dtype)
    first, second = jnp.split(x_BxTxNxH, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
