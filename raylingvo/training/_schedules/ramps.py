"""Schedules that begin with a linear ramp."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from raylingvo.training._schedules.base import Schedule, check_at_least, check_positive, f32
from raylingvo.training._schedules.curves import Cosine, Exponential, Linear
from raylingvo.training._schedules.pieces import select


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
        step = f32(step)
        ramp = jnp.float32(self.max) * (jnp.minimum(step / self.warmup, 1.0) if self.warmup else 1.0)
        progress = jnp.clip((step - self.decay_start) / (self.decay_end - self.decay_start), 0.0, 1.0)
        return ramp * jnp.power(jnp.float32(self.min / self.max), progress)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearRampupExponentialDecayScaledByNumSplit(Schedule):
    """The recipe of one device on n = `num_splits`: n times the rate, in an n-th of the steps, after a longer ramp.

    From `warmup_init` to n over warmup * n steps, held, then exponential from decay_start / n (but after the ramp) to
    decay_end / n, held at `min` (which is not times n). Never above `max`. Lingvo: the same, ..Schedule; it takes
    num_splits from the cluster unless it is given.
    """

    warmup: int = 300
    warmup_init: float = 1.0
    decay_start: int = 70_000
    decay_end: int = 100_000
    min: float = 0.01
    max: float | None = None
    num_splits: int = 1

    def __post_init__(self) -> None:
        check_at_least(self, 0, "warmup", "warmup_init", "decay_start", "decay_end")
        check_at_least(self, 1, "num_splits")
        check_positive(self, "min", "max")

    def __call__(self, step: jax.Array) -> jax.Array:
        peak = float(self.num_splits)
        ramp_end = self.warmup * self.num_splits
        decay_start = max(ramp_end + 1.0, self.decay_start / self.num_splits)
        decay_end = max(decay_start + 1.0, self.decay_end / self.num_splits)
        value = Exponential(start=(decay_start, peak), limit=(decay_end, self.min))(step)
        if ramp_end:
            value = jnp.minimum(Linear(start=(0, self.warmup_init), limit=(ramp_end, peak))(step), value)
        return value if self.max is None else jnp.minimum(value, self.max)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearRampupSqrtDecay(Schedule):
    """From peak / warmup_steps to `peak` over `warmup_steps`, then peak * sqrt(warmup_steps / step).

    Step 0 has the multiplier of step 1. Lingvo: LinearRampupSqrtDecay.
    """

    peak: float = 1.0
    warmup_steps: int = 4000

    def __post_init__(self) -> None:
        check_positive(self, "peak", "warmup_steps")

    def __call__(self, step: jax.Array) -> jax.Array:
        relative = jnp.maximum(f32(step), 1.0) / self.warmup_steps
        return self.peak * jnp.minimum(relative, jax.lax.rsqrt(relative))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearRampupSqrtDecayByBatchSizeAndReplicas(Schedule):
    """min((step + 1) w^-1.5, (step + 1)^-0.5), w = warmup_examples / (batch_size * num_replicas).

    The peak is sqrt(batch_size * num_replicas / warmup_examples). Lingvo: the same, which counts the replicas of the
    cluster unless they are given; batch_size is that of one replica.
    """

    batch_size: int
    num_replicas: int = 1
    warmup_examples: int = 256 << 20

    def __post_init__(self) -> None:
        check_at_least(self, 1, "batch_size", "num_replicas", "warmup_examples")

    def __call__(self, step: jax.Array) -> jax.Array:
        warmup_steps = self.warmup_examples / (self.batch_size * self.num_replicas)
        count = f32(step) + 1
        return jnp.minimum(count * warmup_steps**-1.5, jax.lax.rsqrt(count))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearRampupPiecewiseConstant(Schedule):
    """From 0 to lrs[0] at boundaries[0], then lrs[i] from boundaries[i] on.

    On n = `num_splits`, n times the rates, at boundaries / n. Lingvo: LinearRampupPiecewiseConstantSchedule.
    """

    boundaries: tuple[int, ...]
    lrs: tuple[float, ...]
    num_splits: int = 1

    def __post_init__(self) -> None:
        check_at_least(self, 1, "num_splits")
        if len(self.boundaries) != len(self.lrs) or not self.boundaries:
            raise ValueError(f"lrs must have one value for each of boundaries (got {len(self.lrs)})")
        if any(b <= a for a, b in zip((0, *self.boundaries), self.boundaries, strict=False)):
            raise ValueError(f"boundaries must be > 0 and ascending (got {list(self.boundaries)})")

    def __call__(self, step: jax.Array) -> jax.Array:
        boundaries = tuple(b / self.num_splits for b in self.boundaries)
        lrs = tuple(lr * self.num_splits for lr in self.lrs)
        ramp = Linear(start=(0, 0.0), limit=(boundaries[0], lrs[0]))(step)
        # Lingvo takes the minimum of both, so that a later value above the first one has no effect.
        return jnp.minimum(ramp, select(boundaries, (lrs[0], *lrs), step))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearRampupCosine(Schedule):
    """The minimum of a ramp from `warmup_init` to `initial_value` and a Cosine from there, both beginning at step 0.

    On n = `num_splits`, values are n times and steps (rounded down) an n-th of those given. cyclical: the Cosine is.
    Lingvo: LinearRampupCosineSchedule.
    """

    warmup_init: float = 0.0
    warmup_steps: int = 0
    initial_value: float = 1.0
    final_value: float = 0.0
    total_steps: int
    num_splits: int = 1
    cyclical: bool = False

    def __post_init__(self) -> None:
        check_at_least(self, 0, "warmup_steps")
        check_at_least(self, 1, "num_splits")
        if self.total_steps < self.num_splits:
            raise ValueError(f"total_steps must be >= num_splits (got {self.total_steps}, {self.num_splits})")

    def __call__(self, step: jax.Array) -> jax.Array:
        n = self.num_splits
        peak, warmup_steps = self.initial_value * n, self.warmup_steps // n
        cosine = Cosine(
            initial_value=peak,
            final_value=self.final_value * n,
            total_steps=self.total_steps // n,
            cyclical=self.cyclical,
        )(step)
        if not warmup_steps:
            return cosine
        return jnp.minimum(Linear(start=(0, self.warmup_init * n), limit=(warmup_steps, peak))(step), cosine)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearRampupDecay(Schedule):
    """A triangle: 0 until `start`, up to 1 at `peak`, down to 0 at `end`. Lingvo: LinearRampupDecaySchedule."""

    start: int = 0
    peak: int = 1
    end: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.peak < self.end:
            raise ValueError(f"expected 0 <= start < peak < end (got {self.start}, {self.peak}, {self.end})")

    def __call__(self, step: jax.Array) -> jax.Array:
        up = Linear(start=(self.start, 0.0), limit=(self.peak, 1.0))(step)
        return jnp.minimum(up, Linear(start=(self.peak, 1.0), limit=(self.end, 0.0))(step))
