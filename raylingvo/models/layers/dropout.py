"""Dropout, drawn from the key of the call: modules hold no random state."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, rng: jax.Array | None, *, broadcast_axes: Sequence[int] = ()) -> jax.Array:
    """Each element of `x` is 0 with probability `rate`, and else x / (1 - rate).

    rng: None outside training: `x` as it is. broadcast_axes: one decision is for all elements along these axes.
    Raises ValueError if rate is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1) (got {rate})")
    if rng is None or rate == 0:
        return x
    shared = {axis % x.ndim for axis in broadcast_axes}
    shape = [1 if axis in shared else size for axis, size in enumerate(x.shape)]
    return jnp.where(jax.random.bernoulli(rng, 1 - rate, shape), x / (1 - rate), jnp.zeros((), x.dtype))


def split(rng: jax.Array | None, number: int) -> list[jax.Array | None]:
    """`number` keys, or as many Nones outside training."""
    return [None] * number if rng is None else list(jax.random.split(rng, number))
