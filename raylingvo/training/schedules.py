"""Learning-rate schedules: multipliers that are pure functions of the step (Lingvo: core/schedule.py)."""

from __future__ import annotations

import abc
import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule(abc.ABC):
    """Multiplies the learning rate; a function of the batches consumed (TrainState.step), skipped updates included."""

    @abc.abstractmethod
    def __call__(self, step: jax.Array) -> jax.Array:
        """step: i32[] >= 0, batches consumed before this one -> multiplier f32[]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The same multiplier for ever."""

    value: float = 1.0

    def __call__(self, step: jax.Array) -> jax.Array:
        return jnp.full((), self.value, jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuous(Schedule):
    """1 until `start_step`, then halved every `half_life_steps` (smoothly), never below `min`.

    Lingvo's default: ContinuousSchedule.
    """

    start_step: int = 400_000
    half_life_steps: int = 100_000
    min: float = 0.01

    def __post_init__(self) -> None:
        if self.half_life_steps <= 0:
            raise ValueError(f"half_life_steps must be > 0 (got {self.half_life_steps})")

    def __call__(self, step: jax.Array) -> jax.Array:
        halvings = jnp.maximum(0.0, (step - self.start_step) / self.half_life_steps)
        return jnp.maximum(jnp.float32(self.min), jnp.exp2(-halvings))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearRampupExponentialDecay(Schedule):
    """From 0 to `max` over `warmup` steps, held, then exponential from `decay_start` to `decay_end`, held at `min`.

    Lingvo's LinearRampupExponentialDecay. Its ..ScaledByNumSplitSchedule on one split starts at 1 instead: that is
    `warmup=0`, since a ramp from 1 to the number of splits is flat there. Raises ValueError if the steps are not in
    order.
    """

    warmup: int
    decay_start: int
    decay_end: int
    min: float
    max: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= self.decay_start < self.decay_end:
            raise ValueError(
                "expected 0 <= warmup <= decay_start < decay_end "
                f"(got {self.warmup}, {self.decay_start}, {self.decay_end})"
            )
        if not 0 < self.min <= self.max:
            raise ValueError(f"expected 0 < min <= max (got {self.min}, {self.max})")

    def __call__(self, step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        ramp = jnp.float32(self.max) * (jnp.minimum(step / self.warmup, 1.0) if self.warmup else 1.0)
        progress = jnp.clip((step - self.decay_start) / (self.decay_end - self.decay_start), 0.0, 1.0)
        return ramp * jnp.power(jnp.float32(self.min / self.max), progress)
