"""Schedules made of others, one after the other, and of constants."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from raylingvo.training._schedules.base import Schedule, check_ascending


def select(boundaries: Sequence[float], values: Sequence[jax.Array | float], step: jax.Array) -> jax.Array:
    """values[i] from boundaries[i - 1] (inclusive) to boundaries[i] (exclusive)."""
    value = jnp.asarray(values[0], jnp.float32)
    for boundary, following in zip(boundaries, values[1:], strict=True):
        value = jnp.where(step >= boundary, following, value)
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class PiecewiseConstant(Schedule):
    """values[0] before boundaries[0], then values[i + 1] from boundaries[i] on. Lingvo: PiecewiseConstantSchedule."""

    boundaries: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        check_ascending("boundaries", self.boundaries)
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(f"values must be one more than boundaries (got {len(self.values)})")

    def __call__(self, step: jax.Array) -> jax.Array:
        return select(self.boundaries, self.values, step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piecewise(Schedule):
    """schedules[i] from boundaries[i - 1] (inclusive) to boundaries[i] (exclusive), each beginning at its own step 0.

    pass_absolute_step: they are called with the step itself instead (Lingvo's Value with an explicit step does so).
    Lingvo: PiecewiseSchedule.
    """

    boundaries: tuple[int, ...]
    schedules: tuple[Schedule, ...]
    pass_absolute_step: bool = False

    def __post_init__(self) -> None:
        check_ascending("boundaries", self.boundaries)
        if len(self.schedules) != len(self.boundaries) + 1:
            raise ValueError(f"schedules must be one more than boundaries (got {len(self.schedules)})")

    def __call__(self, step: jax.Array) -> jax.Array:
        starts = (0, *(() if self.pass_absolute_step else self.boundaries))
        starts += (0,) * (len(self.schedules) - len(starts))
        parts = zip(self.schedules, starts, strict=True)
        return select(self.boundaries, [part(jnp.maximum(step - start, 0)) for part, start in parts], step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cycle(Schedule):
    """schedules[i] for steps[i] steps, one after the other, over and over.

    They are called with the step itself; without `pass_absolute_step`, with the step within the round, which is the
    same for all of them. Lingvo: CycleSchedule.
    """

    schedules: tuple[Schedule, ...]
    steps: tuple[int, ...]
    pass_absolute_step: bool = True

    def __post_init__(self) -> None:
        if len(self.schedules) != len(self.steps) or not self.steps:
            raise ValueError(f"steps must have one number for each of schedules (got {len(self.steps)})")
        if min(self.steps) < 0 or sum(self.steps) == 0:
            raise ValueError(f"steps must be >= 0 and not all 0 (got {list(self.steps)})")

    def __call__(self, step: jax.Array) -> jax.Array:
        ends = [sum(self.steps[: i + 1]) for i in range(len(self.steps))]
        within = step % ends[-1]
        passed = step if self.pass_absolute_step else within
        return select(ends[:-1], [part(passed) for part in self.schedules], within)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CombinedMinimum(Schedule):
    """The minimum of some schedules. Lingvo: CombinedMinimumSchedule."""

    schedules: tuple[Schedule, ...]

    def __post_init__(self) -> None:
        if not self.schedules:
            raise ValueError("schedules must have at least one (got none)")

    def __call__(self, step: jax.Array) -> jax.Array:
        return jnp.min(jnp.stack([part(step) for part in self.schedules]))
