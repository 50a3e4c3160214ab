"""The optimizer: from gradients to what is subtracted from the weights."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(abc.ABC):
    """Turns gradients into decrements of the weights."""

    def inner(self) -> tuple[Optimizer, ...]:
        """The optimizers that it is made of, if any."""
        return ()

    @abc.abstractmethod
    def build(self) -> optax.GradientTransformationExtraArgs:
        """An optax transformation that takes the rate and leaves out the sign.

        update(gradients, slots, params, rate=f32[]) -> (decrements, slots); the weights become params - decrements.
        Some optimizers keep decrements in their slots, so the rate is theirs to apply. Without a rate it is 1.
        `params` are nested dicts, here and in `init(params)`. More keywords are for those that know them: `weight`,
        f32[], is that of the batch's loss.
        """

    def schedule_step(self, slots: Any, step: jax.Array) -> jax.Array:
        """For which step the learner's schedule gives the rate of the next update: by default for that of the run."""
        del slots
        return step


def every(optimizer: Optimizer) -> Iterator[Optimizer]:
    """The optimizer, and all that it is made of."""
    yield optimizer
    for one in optimizer.inner():
        yield from every(one)


def at_rate(direction: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimizer whose decrement is the rate times this direction."""

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, *, rate: Any = 1.0, **_: Any
    ) -> tuple[optax.Updates, Any]:
        updates, state = direction.update(updates, state, params)
        return jax.tree.map(lambda d: rate * d, updates), state

    return optax.GradientTransformationExtraArgs(direction.init, update)


def with_lengths(lengths: Any, steps: Any) -> Any:
    """For each variable: the direction of `steps` with the norm of `lengths`; 0 where there is no direction."""
    return jax.tree.map(
        lambda length, step: length_ratio(optax.tree.norm(length), optax.tree.norm(step)) * step, lengths, steps
    )


def length_ratio(length: jax.Array, of: jax.Array) -> jax.Array:
    """length / of, or 0 if `of` is."""
    return jnp.where(of > 0, length / jnp.where(of > 0, of, 1.0), 0.0)


def check_fraction(config: object, *fields: str) -> None:
    """Raises ValueError if a field is not in [0, 1)."""
    for field in fields:
        if not 0 <= getattr(config, field) < 1:
            raise ValueError(f"{field} must be in [0, 1) (got {getattr(config, field)})")


def check_positive(config: object, *fields: str) -> None:
    """Raises ValueError if a field is not above 0; None is allowed."""
    for field in fields:
        value = getattr(config, field)
        if value is not None and not value > 0:
            raise ValueError(f"{field} must be > 0 (got {value})")
