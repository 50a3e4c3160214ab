"""The learning-rate schedule: a multiplier that is a pure function of the step (Lingvo: core/schedule.py)."""

from __future__ import annotations

import abc
import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule(abc.ABC):
    """Multiplies the learning rate; a function of the batches consumed (TrainState.step), skipped updates included.

    The number of devices plays no part: what Lingvo takes from the cluster is a field here (`num_splits`, ..).
    """

    @abc.abstractmethod
    def __call__(self, step: jax.Array) -> jax.Array:
        """step: i32[] >= 0, batches consumed before this one -> multiplier f32[]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The same multiplier for ever (Lingvo: Constant, ConstantOne)."""

    value: float = 1.0

    def __call__(self, step: jax.Array) -> jax.Array:
        return jnp.full((), self.value, jnp.float32)


def f32(step: jax.Array) -> jax.Array:
    """The step as f32[], in which schedules compute; exact up to 2^24."""
    return jnp.asarray(step, jnp.float32)


def check_at_least(config: object, minimum: float, *fields: str) -> None:
    """Raises ValueError if a field is below `minimum`; None is allowed."""
    for field in fields:
        value = getattr(config, field)
        if value is not None and not value >= minimum:
            raise ValueError(f"{field} must be >= {minimum} (got {value})")


def check_positive(config: object, *fields: str) -> None:
    """Raises ValueError if a field is not above 0; None is allowed."""
    for field in fields:
        value = getattr(config, field)
        if value is not None and not value > 0:
            raise ValueError(f"{field} must be > 0 (got {value})")


def check_ascending(field: str, boundaries: tuple[int, ...]) -> None:
    """Raises ValueError if steps are negative or not in ascending order."""
    if any(b < a for a, b in zip((0, *boundaries), boundaries, strict=False)):
        raise ValueError(f"{field} must be ascending and >= 0 (got {list(boundaries)})")
