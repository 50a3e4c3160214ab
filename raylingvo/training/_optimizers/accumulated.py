"""Optimizers that gather the gradients of several batches for one update of another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from raylingvo.training._optimizers.base import Optimizer, check_positive, every


def accumulates(optimizer: Optimizer) -> bool:
    """Whether there is an accumulator in it."""
    return any(isinstance(one, Accumulator | DynamicAccumulator) for one in every(optimizer))


class AccumulatorState(NamedTuple):
    """The gradients since the last update, and the slots of the optimizer that gets their mean."""

    num_batches: jax.Array  # i32[], since the last update
    gradients: Any  # their sum, like the weights
    slots: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accumulator(Optimizer):
    """The mean of the gradients of `accum_steps` batches goes to `optimizer`; between, the weights stay.

    The rate is that of the last of these batches. A skipped update does not count (in Lingvo it does, as zeros).
    Lingvo: Accumulator; XLAShardingAdafactorAccuGrad is one of an Adafactor.
    """

    optimizer: Optimizer
    accum_steps: int = 5

    def __post_init__(self) -> None:
        if self.accum_steps < 1:
            raise ValueError(f"accum_steps must be >= 1 (got {self.accum_steps})")

    def inner(self) -> tuple[Optimizer, ...]:
        return (self.optimizer,)

    def build(self) -> optax.GradientTransformationExtraArgs:
        inner = self.optimizer.build()

        def init(params: optax.Params) -> AccumulatorState:
            return AccumulatorState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), inner.init(params))

        def update(
            updates: optax.Updates, state: Any, params: optax.Params | None = None, *, rate: Any = 1.0, **_: Any
        ) -> tuple[optax.Updates, AccumulatorState]:
            total = jax.tree.map(lambda a, g: a + g.astype(a.dtype), state.gradients, updates)

            def apply() -> tuple[optax.Updates, AccumulatorState]:
                mean = jax.tree.map(lambda a: a * (1 / self.accum_steps), total)
                decrements, slots = inner.update(mean, state.slots, params, rate=rate)
                zeros = jax.tree.map(jnp.zeros_like, total)
                return decrements, AccumulatorState(jnp.zeros((), jnp.int32), zeros, slots)

            waiting = AccumulatorState(state.num_batches + 1, total, state.slots)
            return _apply_or_wait(waiting.num_batches == self.accum_steps, apply, waiting)

        return optax.GradientTransformationExtraArgs(init, update)


class DynamicAccumulatorState(NamedTuple):
    """The gradients since the last update, and the slots of the optimizer that gets their mean."""

    num_updates: jax.Array  # i32[]
    weight: jax.Array  # f32[], of the batches since the last update
    gradients: Any  # their sum, each times the weight of its batch; like the weights of the model
    slots: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicAccumulator(Optimizer):
    """Gathers batches until their weights come to `min_accum_weight` together; their mean goes to `optimizer`.

    The weight of a batch is that of its loss (of the metric `loss`, or the learner's `loss_name`): the number of its
    examples, or of its tokens, as the task has it. The mean is weighted by it. Between updates the weights of the model
    stay. The learner's schedule goes by updates, not by steps; so this is a learner's optimizer itself, never a part
    of another. Lingvo: DynamicAccumulator. A skipped update does not count (in Lingvo it does, as zeros).
    """

    optimizer: Optimizer
    min_accum_weight: float

    def __post_init__(self) -> None:
        check_positive(self, "min_accum_weight")

    def inner(self) -> tuple[Optimizer, ...]:
        return (self.optimizer,)

    def schedule_step(self, slots: DynamicAccumulatorState, step: jax.Array) -> jax.Array:
        del step
        return slots.num_updates

    def build(self) -> optax.GradientTransformationExtraArgs:
        inner = self.optimizer.build()

        def init(params: optax.Params) -> DynamicAccumulatorState:
            zeros = jax.tree.map(jnp.zeros_like, params)
            return DynamicAccumulatorState(
                jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), zeros, inner.init(params)
            )

        def update(
            updates: optax.Updates,
            state: Any,
            params: optax.Params | None = None,
            *,
            rate: Any = 1.0,
            weight: Any = 1.0,
            **_: Any,
        ) -> tuple[optax.Updates, DynamicAccumulatorState]:
            weight = jnp.asarray(weight, jnp.float32)
            total_weight = state.weight + weight
            total = jax.tree.map(lambda a, g: a + (weight * g).astype(a.dtype), state.gradients, updates)

            def apply() -> tuple[optax.Updates, DynamicAccumulatorState]:
                mean = jax.tree.map(lambda a: (a / total_weight).astype(a.dtype), total)
                decrements, slots = inner.update(mean, state.slots, params, rate=rate)
                zeros = jax.tree.map(jnp.zeros_like, total)
                return decrements, DynamicAccumulatorState(
                    state.num_updates + 1, jnp.zeros((), jnp.float32), zeros, slots
                )

            waiting = DynamicAccumulatorState(state.num_updates, total_weight, total, state.slots)
            return _apply_or_wait(total_weight >= self.min_accum_weight, apply, waiting)

        return optax.GradientTransformationExtraArgs(init, update)


def _apply_or_wait(due: jax.Array, apply: Callable[[], tuple[Any, Any]], waiting: Any) -> tuple[Any, Any]:
    """What `apply` gives if due: bool[]; else decrements of 0, and `waiting` for a state."""
    # The decrements of a float32 rate are float32 whatever the weights are.
    like = jax.eval_shape(apply)[0]
    return jax.lax.cond(due, apply, lambda: (jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like), waiting))
