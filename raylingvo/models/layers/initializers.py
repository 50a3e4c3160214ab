"""Lingvo's ways to initialise weights (core/py_utils.py, WeightInit), as functions (key, shape, dtype) -> array."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from raylingvo.models.layers.variables import Initializer


def zeros(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """0 everywhere."""
    del key
    return jnp.zeros(shape, dtype)


def constant(value: float) -> Initializer:
    """`value` everywhere."""
    return lambda key, shape, dtype=jnp.float32: jnp.full(shape, value, dtype)


def uniform(scale: float) -> Initializer:
    """U(-scale, scale)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -scale, scale)


def gaussian(scale: float) -> Initializer:
    """N(0, scale^2): `scale` is the standard deviation."""
    return lambda key, shape, dtype=jnp.float32: scale * jax.random.normal(key, shape, dtype)


def gaussian_sqrt_dim(scale: float = 1.0) -> Initializer:
    """N(0, scale^2 / n), where n is the size of the first axis."""
    return lambda key, shape, dtype=jnp.float32: gaussian(scale * shape[0] ** -0.5)(key, shape, dtype)


def uniform_sqrt_dim(scale: float = 1.0) -> Initializer:
    """U(-l, l) with l = scale / sqrt(n), where n is the size of the first axis."""
    return lambda key, shape, dtype=jnp.float32: uniform(scale * shape[0] ** -0.5)(key, shape, dtype)


def uniform_unit_scaling(scale: float = 1.0) -> Initializer:
    """U(-l, l) with l = scale * sqrt(3 / n), where n is the product of all sizes but the last."""
    return nnx.initializers.variance_scaling(scale**2, "fan_in", "uniform")


def xavier(scale: float = 1.0) -> Initializer:
    """U(-l, l) with l = scale * sqrt(6 / (fan_in + fan_out)): Lingvo's default. The last two axes are in and out.

    The axes before them, as of a convolution, count in both fans. (Lingvo multiplies by 1.000001, to tell its default
    from an explicit choice.)
    """
    return nnx.initializers.variance_scaling(scale**2, "fan_avg", "uniform")
