"""Layers with random values for tests: no random number is compiled, and also what starts as zeros counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

M = TypeVar("M")


def filled(make: Callable[[], M], *, scale: float = 0.4, seed: int = 0) -> M:
    """What `make` makes, its arrays drawn from N(0, scale^2)."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.standard_normal(x.shape), x.dtype), jax.eval_shape(make))


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """f32 of N(0, 1)."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)
