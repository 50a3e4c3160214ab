"""Gradients that are far larger than usual are told from the others by their norm."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp


class TrackerState(NamedTuple):
    """Averages that decay with the steps, all f32[] and 0 at the start."""

    log_mean: jax.Array  # of log(1 + norm), capped
    log_mean_squared: jax.Array
    total_weight: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradNormTracker:
    """Drops updates whose log(1 + norm) is `clip_threshold` standard deviations above its moving mean.

    Mean and deviation are of values capped at that bound, with `decay`. None is dropped before the weight of the
    averages, this step's included, is above 0.75 (275 steps at the default decay), and none whose norm is below
    `grad_norm_clip_cap_min`. Smaller norms count as `grad_norm_lower_cap`. Lingvo: layers.GradNormTracker.

    The weight of the averages includes this step's, their sums do not: in Lingvo's graph the two are not ordered, and
    so its runs mostly come out.

    As in Lingvo the averages begin at 0, and so does the bound: they must reach the true mean from below. With a small
    `clip_threshold` they do not, and everything is dropped from then on: watch the metric `num_dropped_updates` (Lingvo
    has the count as a variable, total_rejections).
    """

    decay: float = 0.995
    grad_norm_lower_cap: float = 1e-2
    clip_threshold: float = 4.0
    grad_norm_clip_cap_min: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ValueError(f"decay must be in (0, 1) (got {self.decay})")
        for field in ("grad_norm_lower_cap", "clip_threshold", "grad_norm_clip_cap_min"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"{field} must be >= 0 (got {getattr(self, field)})")

    def init(self) -> TrackerState:
        return TrackerState(*(jnp.zeros((), jnp.float32) for _ in TrackerState._fields))

    def __call__(self, norm: jax.Array, finite: jax.Array, state: TrackerState) -> tuple[jax.Array, TrackerState]:
        """norm: f32[] of the gradients; finite: bool[], whether the update is -> (whether to keep it bool[], state).

        What is not finite leaves the averages as they were.
        """

        def average(old: jax.Array, new: jax.Array | float) -> jax.Array:
            return jnp.where(finite, old + (1 - self.decay) * (new - old), old)

        weight = average(state.total_weight, 1.0)
        total = jnp.maximum(weight, 1e-6)
        mean = state.log_mean / total
        std = jnp.sqrt(jnp.maximum(state.log_mean_squared / total - mean * mean, 1e-6))
        cap = jnp.maximum(mean + std * self.clip_threshold, jnp.log1p(jnp.float32(self.grad_norm_clip_cap_min)))
        value = jnp.log1p(jnp.maximum(norm, self.grad_norm_lower_cap))
        capped = jnp.minimum(value, cap)
        keep = finite & ~((value > cap) & (weight > 0.75))
        next_state = TrackerState(
            log_mean=average(state.log_mean, capped),
            log_mean_squared=average(state.log_mean_squared, capped * capped),
            total_weight=weight,
        )
        return keep, next_state
