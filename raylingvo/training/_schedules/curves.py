"""Schedules along one curve: polynomial, exponential, cosine, square root."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from raylingvo.training._schedules.base import Schedule, check_at_least, check_positive, f32


def _check_order(start: tuple[float, float], limit: tuple[float, float]) -> None:
    if not start[0] < limit[0]:
        raise ValueError(f"start must be at an earlier step than limit (got {start[0]:g}, {limit[0]:g})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Polynomial(Schedule):
    """From `start` to `limit`, two points (step, multiplier), along a polynomial; constant before and after.

    y = y0 + r^power (y1 - y0), r = (step - x0) / (x1 - x0); with `origin="limit"`, 1 - (1 - r)^power in place of
    r^power. Lingvo: PolynomialSchedule.
    """

    start: tuple[float, float] = (0, 1.0)
    limit: tuple[float, float] = (1, 1.0)
    power: float = 1.0
    origin: Literal["start", "limit"] = "start"

    def __post_init__(self) -> None:
        _check_order(self.start, self.limit)
        check_positive(self, "power")

    def __call__(self, step: jax.Array) -> jax.Array:
        (x0, y0), (x1, y1) = self.start, self.limit
        ratio = jnp.clip((f32(step) - x0) / (x1 - x0), 0.0, 1.0)
        curve = ratio**self.power if self.origin == "start" else 1 - (1 - ratio) ** self.power
        return jnp.float32(y0) + curve * (y1 - y0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """A straight line from `start` to `limit`, two points (step, multiplier); constant before and after.

    Lingvo: LinearSchedule.
    """

    start: tuple[float, float] = (0, 1.0)
    limit: tuple[float, float] = (1, 1.0)

    def __post_init__(self) -> None:
        _check_order(self.start, self.limit)

    def __call__(self, step: jax.Array) -> jax.Array:
        return Polynomial(start=self.start, limit=self.limit)(step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exponential(Schedule):
    """From `start` to `limit`, two points (step, multiplier > 0), at a constant factor per step; constant outside.

    Lingvo: ExponentialSchedule.
    """

    start: tuple[float, float] = (0, 1.0)
    limit: tuple[float, float] = (1, 0.5)

    def __post_init__(self) -> None:
        _check_order(self.start, self.limit)
        if not (self.start[1] > 0 and self.limit[1] > 0):
            raise ValueError(f"start and limit must have multipliers > 0 (got {self.start[1]}, {self.limit[1]})")

    def __call__(self, step: jax.Array) -> jax.Array:
        (x0, y0), (x1, y1) = self.start, self.limit
        return jnp.exp(Linear(start=(x0, math.log(y0)), limit=(x1, math.log(y1)))(step))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuous(Schedule):
    """1 until `start_step`, then halved every `half_life_steps` (smoothly), never below `min`.

    Lingvo's default: ContinuousSchedule. Its `initial_value` is a part of the learning rate here.
    """

    start_step: int = 400_000
    half_life_steps: int = 100_000
    min: float = 0.01

    def __post_init__(self) -> None:
        check_positive(self, "half_life_steps")

    def __call__(self, step: jax.Array) -> jax.Array:
        halvings = jnp.maximum(0.0, (step - self.start_step) / self.half_life_steps)
        return jnp.maximum(jnp.float32(self.min), jnp.exp2(-halvings))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annealing(Schedule):
    """factor^step, never below `lower_bound`. Lingvo: AnnealingSchedule, whose `init` has no effect."""

    factor: float
    lower_bound: float

    def __post_init__(self) -> None:
        if not 0 < self.factor <= 1:
            raise ValueError(f"factor must be in (0, 1] (got {self.factor})")

    def __call__(self, step: jax.Array) -> jax.Array:
        return jnp.maximum(jnp.float32(self.factor) ** f32(step), self.lower_bound)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepwiseExponential(Schedule):
    """decay^floor(step / num_steps_per_decay). Lingvo: StepwiseExponentialSchedule."""

    decay: float = 0.99
    num_steps_per_decay: int = 1000

    def __post_init__(self) -> None:
        check_positive(self, "decay", "num_steps_per_decay")

    def __call__(self, step: jax.Array) -> jax.Array:
        return jnp.float32(self.decay) ** f32(step // self.num_steps_per_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """From `initial_value` to `final_value` in `total_steps`, along half a cosine wave; then constant.

    cyclical: go on instead: with `half_cycle`, by starting again from `initial_value` (warm restarts,
    arXiv:1608.03983); without, along the whole wave, up again as it came down. Lingvo: CosineSchedule.
    """

    initial_value: float = 1.0
    final_value: float = 0.0
    total_steps: int
    cyclical: bool = False
    half_cycle: bool = True

    def __post_init__(self) -> None:
        check_positive(self, "total_steps")

    def __call__(self, step: jax.Array) -> jax.Array:
        if not self.cyclical:
            ratio = jnp.minimum(1.0, f32(step) / self.total_steps)
        else:  # the remainder is taken of the integer: a large step loses nothing in float32
            ratio = f32(step % (self.total_steps * (1 if self.half_cycle else 2))) / self.total_steps
        gap = self.initial_value - self.final_value
        return jnp.float32(self.final_value) + 0.5 * gap * (1 + jnp.cos(math.pi * ratio))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SqrtDecay(Schedule):
    """multiplier / sqrt(max(step - offset, warmup_steps)); the rate of the giant language models. Lingvo: SqrtDecay."""

    warmup_steps: int = 10_000
    multiplier: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        check_positive(self, "warmup_steps")

    def __call__(self, step: jax.Array) -> jax.Array:
        return self.multiplier * jax.lax.rsqrt(jnp.maximum(f32(step) - self.offset, self.warmup_steps))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SqrtDecayToZero(Schedule):
    """`starting_lr` until `warmup_steps`, then a (1 / sqrt(step) - 1 / sqrt(final_steps)), which is 0 at `final_steps`.

    The factor a is such that there is no jump. Beyond `final_steps` it is 0; with compat="lingvo" it goes on falling,
    below 0, as Lingvo's SqrtDecayToZero does. The other fields and their defaults are Lingvo's.
    """

    warmup_steps: float = 10_000
    starting_lr: float = 0.01
    final_steps: float = 100_000
    compat: Literal["lingvo"] | None = None

    def __post_init__(self) -> None:
        check_positive(self, "warmup_steps", "starting_lr")
        if not self.warmup_steps < self.final_steps:
            raise ValueError(f"final_steps must be > warmup_steps (got {self.final_steps}, {self.warmup_steps})")
        if self.compat not in (None, "lingvo"):
            raise ValueError(f"compat must be None or 'lingvo' (got {self.compat!r})")

    def __call__(self, step: jax.Array) -> jax.Array:
        start, end = math.sqrt(self.warmup_steps), math.sqrt(self.final_steps)
        root = jnp.sqrt(jnp.maximum(f32(step), self.warmup_steps))
        # a / root - a / end, written so that near the end nothing cancels.
        value = self.starting_lr * start / (end - start) * (end - root) / root
        return value if self.compat == "lingvo" else jnp.maximum(value, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InverseSigmoid(Schedule):
    """k / (k + exp(step / k)): near 1, then falling to 0 (scheduled sampling, arXiv:1506.03099).

    Lingvo: InverseSigmoid.
    """

    k: float = 10_000.0

    def __post_init__(self) -> None:
        check_at_least(self, 1, "k")

    def __call__(self, step: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(math.log(self.k) - f32(step) / self.k)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaDecay(Schedule):
    """min(ema_decay, (1 + step) / (10 + step)): averages of weights that forget the first steps soon.

    A schedule for `Train.ema_schedule`. Lingvo: EmaDecaySchedule, TensorFlow's num_updates.
    """

    ema_decay: float = 0.9999

    def __post_init__(self) -> None:
        if not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in (0, 1) (got {self.ema_decay})")

    def __call__(self, step: jax.Array) -> jax.Array:
        return jnp.minimum(jnp.float32(self.ema_decay), (1 + f32(step)) / (10 + f32(step)))
