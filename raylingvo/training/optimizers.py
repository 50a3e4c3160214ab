"""Optimizers as configuration, each building the optax transformation that gives the direction of an update."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(abc.ABC):
    """Turns gradients into a direction of unit rate; the learner scales it by the learning rate."""

    @abc.abstractmethod
    def build(self) -> optax.GradientTransformation:
        """The optax transformation, without learning rate and sign."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sgd(Optimizer):
    """Gradient descent, with momentum if `momentum` > 0: m <- momentum * m + g (Lingvo: SGD and Momentum)."""

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1) (got {self.momentum})")

    def build(self) -> optax.GradientTransformation:
        return optax.trace(self.momentum, self.nesterov) if self.momentum else optax.identity()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam (arXiv:1412.6980, the efficient form at the end of section 2), Lingvo's defaults.

    The direction is sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + epsilon). This is TensorFlow's Adam and differs
    from optax.adam in where epsilon stands: here it is added before the bias correction.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1) (got {getattr(self, name)})")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be > 0 (got {self.epsilon})")

    def build(self) -> optax.GradientTransformation:
        def init(params: optax.Params) -> optax.ScaleByAdamState:
            zeros = jax.tree.map(jnp.zeros_like, params)
            return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

        def update(
            updates: optax.Updates, state: Any, params: optax.Params | None = None
        ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
            del params
            count = state.count + 1
            mu = optax.tree.update_moment(updates, state.mu, self.beta1, 1)
            nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, self.beta2, 2)
            t = count.astype(jnp.float32)
            correction = jnp.sqrt(1 - jnp.float32(self.beta2) ** t) / (1 - jnp.float32(self.beta1) ** t)
            direction = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + self.epsilon), mu, nu)
            return direction, optax.ScaleByAdamState(count, mu, nu)

        return optax.GradientTransformation(init, update)
