"""Optimizers made of others: one for each part of the weights, grafted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from raylingvo.config import FrozenDict
from raylingvo.errors import RequestError
from raylingvo.training._optimizers.base import Optimizer, check_positive, every, length_ratio, with_lengths
from raylingvo.training.paths import check_pattern, matches, merge, names, select


def patterns(optimizer: Optimizer) -> list[str]:
    """The regular expressions by which it tells variables apart."""
    return [pattern for one in every(optimizer) if isinstance(one, Composite) for pattern in one.parts]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """An optimizer for some variables, at the learner's rate or at a constant rate of its own."""

    optimizer: Optimizer
    learning_rate: float | None = None  # None: the learner's, with its schedule

    def __post_init__(self) -> None:
        check_positive(self, "learning_rate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Composite(Optimizer):
    """parts: regular expression -> the optimizer of the variables in whose path it is found; `default`: of the others.

    A variable that two of them match is a RequestError, and so is an expression that matches no weight of the model.
    Lingvo: CompositeOptimizer, whose parts have rates of their own always, and whose expressions match from the
    beginning of a name.
    """

    parts: Mapping[str, Part]
    default: Part

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", FrozenDict(self.parts))
        for pattern in self.parts:
            check_pattern("parts", pattern)

    def inner(self) -> tuple[Optimizer, ...]:
        return tuple(part.optimizer for part in (*self.parts.values(), self.default))

    def build(self) -> optax.GradientTransformationExtraArgs:
        parts = [*self.parts.values(), self.default]
        inner = [part.optimizer.build() for part in parts]

        def split(tree: Any) -> list[dict[Any, Any]]:
            owners = {name: self._owner(name) for name, _ in names(tree)}
            return [select(tree, lambda name, i=i: owners[name] == i) for i in range(len(parts))]

        def init(params: optax.Params) -> tuple[Any, ...]:
            return tuple(one.init(mine) for one, mine in zip(inner, split(params), strict=True))

        def update(
            updates: optax.Updates, state: Any, params: optax.Params | None = None, *, rate: Any = 1.0, **_: Any
        ) -> tuple[optax.Updates, tuple[Any, ...]]:
            decrements: Any = updates
            slots = []
            for part, one, grads, mine, before in zip(parts, inner, split(updates), split(params), state, strict=True):
                own_rate = rate if part.learning_rate is None else jnp.float32(part.learning_rate)
                decrement, after = one.update(grads, before, mine, rate=own_rate)
                decrements = merge(decrements, cast(Any, decrement))
                slots.append(after)
            return decrements, tuple(slots)

        return optax.GradientTransformationExtraArgs(init, update)

    def _owner(self, name: str) -> int:
        found = [i for i, pattern in enumerate(self.parts) if matches(pattern)(name)]
        if len(found) > 1:
            patterns = " and ".join(repr(pattern) for i, pattern in enumerate(self.parts) if i in found)
            raise RequestError(f"optimizer.parts: {patterns} both match the variable {name}")
        return found[0] if found else len(self.parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaGraft(Optimizer):
    """The direction of one optimizer's step with the length of another's (arXiv:2002.11803).

    For each variable, or with `use_global_norm` for all of them together. direction_rate: a constant rate for the
    direction's optimizer; None: the learner's, with its schedule. Lingvo: AdaGraft.
    """

    magnitude: Optimizer
    direction: Optimizer
    direction_rate: float | None = None
    use_global_norm: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "direction_rate")

    def inner(self) -> tuple[Optimizer, ...]:
        return self.magnitude, self.direction

    def build(self) -> optax.GradientTransformationExtraArgs:
        magnitude, direction = self.magnitude.build(), self.direction.build()

        def init(params: optax.Params) -> tuple[Any, Any]:
            return magnitude.init(params), direction.init(params)

        def update(
            updates: optax.Updates, state: Any, params: optax.Params | None = None, *, rate: Any = 1.0, **_: Any
        ) -> tuple[optax.Updates, tuple[Any, Any]]:
            direction_rate = rate if self.direction_rate is None else jnp.float32(self.direction_rate)
            lengths, first = magnitude.update(updates, state[0], params, rate=rate)
            steps, second = direction.update(updates, state[1], params, rate=direction_rate)
            if self.use_global_norm:
                ratio = length_ratio(optax.tree.norm(lengths), optax.tree.norm(steps))
                grafted = jax.tree.map(lambda step: ratio * step, steps)
            else:
                grafted = with_lengths(lengths, steps)
            return grafted, (first, second)

        return optax.GradientTransformationExtraArgs(init, update)
