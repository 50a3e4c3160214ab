"""Momentum whose rate adapts: for each weight, and for each variable as a whole."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from raylingvo.training._optimizers.base import Optimizer, check_fraction, check_positive

_TINY = 1e-10  # beside norms, which may be 0


class EGDDState(NamedTuple):
    """Slots by variable, in the dicts of the weights.

    In the place of a variable: {"momentum", "mean_gradient", "gain": like it, "scale": f32[]}.
    """

    num_updates: jax.Array  # i32[]
    slots: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class EGDD(Optimizer):
    """EGDD (arXiv:2202.00145): m <- momentum m + rate gain g; the weights change by scale m.

    `gain`, one for each weight, grows while gradients agree in sign with their mean of the past and shrinks while they
    do not; `scale`, one for each variable, does so by the cosine of the gradient and m. Each step multiplies them by
    the exponential of that agreement times `gain_learning_rate` and `scale_learning_rate`, within their bounds.
    beta: the decay of the mean. use_signs: off, the product of gradient and mean itself, for `gain`; use_directions:
    off, the inner product itself, for `scale`. Lingvo: core/egdd.py, whose `momentum` has no default.
    """

    momentum: float = 0.9
    beta: float = 0.9
    gain_learning_rate: float = 0.01
    scale_learning_rate: float = 0.001
    initial_gain: float = 1.0
    min_gain: float = 1e-2
    max_gain: float = 1e2
    initial_scale: float = 1.0
    min_scale: float = 1e-1
    max_scale: float = 1e1
    use_directions: bool = True
    use_signs: bool = True

    def __post_init__(self) -> None:
        check_fraction(self, "momentum", "beta")
        check_positive(self, "gain_learning_rate", "scale_learning_rate", "min_gain", "min_scale")
        for name in ("gain", "scale"):
            low, first, high = (getattr(self, f"{which}_{name}") for which in ("min", "initial", "max"))
            if not low <= first <= high:
                raise ValueError(f"initial_{name} must be in [min_{name}, max_{name}] (got {first}, [{low}, {high}])")

    def build(self) -> optax.GradientTransformationExtraArgs:
        def init(params: optax.Params) -> EGDDState:
            return EGDDState(jnp.zeros((), jnp.int32), jax.tree.map(self._slots, params))

        def update(
            updates: optax.Updates, state: Any, params: optax.Params | None = None, *, rate: Any = 1.0, **_: Any
        ) -> tuple[optax.Updates, EGDDState]:
            del params
            grads, treedef = jax.tree.flatten(updates)
            # The mean begins at 0: by this it is short of what it would be.
            bias = 1 - jnp.float32(self.beta) ** jnp.maximum(state.num_updates, 1)
            parts = zip(grads, treedef.flatten_up_to(state.slots), strict=True)
            slots = [self._update(grad, before, bias, rate) for grad, before in parts]
            decrements = [after["scale"] * after["momentum"] for after in slots]
            return treedef.unflatten(decrements), EGDDState(state.num_updates + 1, treedef.unflatten(slots))

        return optax.GradientTransformationExtraArgs(init, update)

    def _slots(self, param: jax.Array) -> dict[str, jax.Array]:
        return {
            "momentum": jnp.zeros_like(param),
            "mean_gradient": jnp.zeros_like(param),
            "gain": jnp.full_like(param, self.initial_gain),
            "scale": jnp.float32(self.initial_scale),
        }

    def _update(self, grad: jax.Array, slots: dict[str, jax.Array], bias: jax.Array, rate: Any) -> dict[str, jax.Array]:
        momentum, mean = slots["momentum"], slots["mean_gradient"]
        agreement = jnp.sum(grad * momentum)
        if self.use_directions:
            agreement = agreement / ((_norm(grad) + _TINY) * (_norm(momentum) + _TINY))
        scale = slots["scale"] * jnp.exp(self.scale_learning_rate * agreement)
        agreements = jnp.sign(grad) * jnp.sign(mean) if self.use_signs else grad * mean / bias
        gain = jnp.clip(slots["gain"] * jnp.exp(self.gain_learning_rate * agreements), self.min_gain, self.max_gain)
        after = {
            "momentum": self.momentum * momentum + rate * gain * grad,
            "mean_gradient": self.beta * mean + (1 - self.beta) * grad,
            "gain": gain,
            "scale": jnp.clip(scale, self.min_scale, self.max_scale),
        }
        return {name: x.astype(slots[name].dtype) for name, x in after.items()}


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x)))
