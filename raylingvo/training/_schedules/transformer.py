"""The schedules of Transformers: a linear warm-up, then the inverse square root of the step (arXiv:1706.03762)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from raylingvo.training._schedules.base import Schedule, check_at_least, check_positive, f32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer(Schedule):
    """model_dim^-0.5 * min((t + 1) w^-1.5, (t + 1)^-0.5), w = warmup_steps * worker_replicas, t = step.

    decay_end: the step from which it is constant. decay_factor: the exponent p in place of -0.5; the ramp is then
    (t + 1) w^(p - 1). start_step: added to t in the decay only, not in the ramp (as in Lingvo). cyclical_step: begin
    again, warm-up included, every so many steps. Lingvo: TransformerSchedule.
    """

    warmup_steps: int = 4000
    model_dim: int = 512
    worker_replicas: int = 1
    decay_end: int | None = None
    start_step: int = 0
    decay_factor: float = -0.5
    cyclical_step: int | None = None

    def __post_init__(self) -> None:
        check_at_least(self, 1, "warmup_steps", "model_dim", "worker_replicas", "cyclical_step")
        check_at_least(self, 0, "decay_end", "start_step")
        if not self.decay_factor <= 0:
            raise ValueError(f"decay_factor must be <= 0 (got {self.decay_factor})")

    def __call__(self, step: jax.Array) -> jax.Array:
        count = f32(step if self.cyclical_step is None else step % self.cyclical_step)
        count = (count if self.decay_end is None else jnp.minimum(count, self.decay_end)) + 1
        warmup = float(self.warmup_steps * self.worker_replicas)
        ramp = count * warmup ** (self.decay_factor - 1)
        return self.model_dim**-0.5 * jnp.minimum(ramp, (count + self.start_step) ** self.decay_factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerMLPerf(Schedule):
    """model_dim^-0.5 * ramp * max(step, warmup_steps)^-0.5; the ramp goes from `warmup_init_fraction` to 1.

    Unlike Transformer, it is 0 at step 0 unless told otherwise. Lingvo: TransformerMLPerfSchedule.
    """

    warmup_steps: int = 4000
    warmup_init_fraction: float = 0.0
    model_dim: int = 512

    def __post_init__(self) -> None:
        check_at_least(self, 1, "warmup_steps", "model_dim")
        if not 0 <= self.warmup_init_fraction <= 1:
            raise ValueError(f"warmup_init_fraction must be in [0, 1] (got {self.warmup_init_fraction})")

    def __call__(self, step: jax.Array) -> jax.Array:
        first = self.warmup_init_fraction
        ramp = jnp.minimum(1.0, first + (1 - first) * f32(step) / self.warmup_steps)
        return self.model_dim**-0.5 * ramp * jax.lax.rsqrt(jnp.maximum(f32(step), self.warmup_steps))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerNoWarmUp(Schedule):
    """model_dim^-0.5 * min(w^-0.5, (step + 1)^-0.5), w = decay_start * worker_replicas: Transformer from its peak on.

    decay_end: the step from which it is constant. Lingvo: TransformerScheduleNoWarmUp.
    """

    decay_start: int = 4000
    decay_end: int | None = None
    model_dim: int = 512
    worker_replicas: int = 1

    def __post_init__(self) -> None:
        check_positive(self, "decay_start", "model_dim", "worker_replicas")
        check_at_least(self, 0, "decay_end")

    def __call__(self, step: jax.Array) -> jax.Array:
        count = (f32(step) if self.decay_end is None else jnp.minimum(f32(step), self.decay_end)) + 1
        peak = float(self.decay_start * self.worker_replicas) ** -0.5
        return self.model_dim**-0.5 * jnp.minimum(jax.lax.rsqrt(count), peak)
