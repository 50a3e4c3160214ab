"""Optimizers that treat every weight by itself, with TensorFlow's numerics."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from raylingvo.training._optimizers.base import Optimizer, at_rate, check_fraction, check_positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sgd(Optimizer):
    """Gradient descent, with momentum if `momentum` > 0: m <- momentum * m + g (Lingvo: SGD and Momentum)."""

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        check_fraction(self, "momentum")

    def build(self) -> optax.GradientTransformationExtraArgs:
        return at_rate(optax.trace(self.momentum, self.nesterov) if self.momentum else optax.identity())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Momentum(Sgd):
    """Gradient descent with momentum 0.9: Lingvo's Momentum with its default `alpha`."""

    momentum: float = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam (arXiv:1412.6980, the efficient form at the end of section 2), Lingvo's defaults.

    The direction is sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + epsilon). This is TensorFlow's Adam and differs
    from optax.adam in where epsilon stands: here it is added before the bias correction.
    Lingvo's ParamsA are .9, .997, 1e-9, its ParamsB (Transformers) .9, .98, 1e-9.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        check_fraction(self, "beta1", "beta2")
        check_positive(self, "epsilon")

    def build(self) -> optax.GradientTransformationExtraArgs:
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

        return at_rate(optax.GradientTransformation(init, update))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adagrad(Optimizer):
    """g / sqrt(a), a the sum of g^2 and `initial_accumulator_value`; no epsilon (TensorFlow's; Lingvo: Adagrad)."""

    initial_accumulator_value: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "initial_accumulator_value")

    def build(self) -> optax.GradientTransformationExtraArgs:
        return at_rate(optax.scale_by_rss(self.initial_accumulator_value, eps=0.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaDelta(Optimizer):
    """AdaDelta (arXiv:1212.5701), Lingvo's defaults."""

    decay: float = 0.95
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        check_fraction(self, "decay")
        check_positive(self, "epsilon")

    def build(self) -> optax.GradientTransformationExtraArgs:
        return at_rate(optax.scale_by_adadelta(self.decay, self.epsilon))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RMSProp(Optimizer):
    """s <- decay s + (1 - decay) g^2, m <- momentum m + rate g / sqrt(s + epsilon); the weights change by m.

    s begins at 1, and m has the rates of its steps in it (TensorFlow's RMSPropOptimizer). Lingvo's defaults.
    """

    decay: float = 0.9
    momentum: float = 0.9
    epsilon: float = 1.0

    def __post_init__(self) -> None:
        check_fraction(self, "decay", "momentum")
        check_positive(self, "epsilon")

    def build(self) -> optax.GradientTransformationExtraArgs:
        scale = at_rate(optax.scale_by_rms(self.decay, self.epsilon, initial_scale=1.0, eps_in_sqrt=True))
        return optax.chain(scale, *([optax.trace(self.momentum)] if self.momentum else []))
