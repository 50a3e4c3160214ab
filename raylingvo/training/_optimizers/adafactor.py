"""Adafactor, as Lingvo's language models use it."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from raylingvo.training._optimizers.base import Optimizer, check_fraction, check_positive

_EPSILON1 = 1e-30  # added to squared gradients
_EPSILON2 = 1e-3  # the least scale of a variable: one of zeros must be able to leave them


class AdafactorState(NamedTuple):
    """Slots by variable, in the dicts of the weights.

    In the place of a variable: {"v": like it}, or factored {"vr": its means over the largest dimension, "vc": over the
    second largest}; and with beta1, "m", like it.
    """

    num_updates: jax.Array  # i32[]
    slots: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
    """Adafactor (arXiv:1804.04235) as in Lingvo's XLAShardingAdafactor, with its defaults.

    The second moment of a variable whose two largest dimensions are >= `min_dim_size_to_factor` is kept as its means
    over each of them. Its decay at update t = 0, 1, .. is beta2 (1 - beta2^t) / (1 - beta2^(t+1)), or, given
    `decay_exponent_pow`, 1 - (t + 1 - decay_exponent_offset)^-decay_exponent_pow. The step is clipped to a root mean
    square of `clipping_threshold`, and multiplied by that of the variable itself unless `multiply_by_parameter_scale`
    is off. The average over steps, with beta1, is of decrements, the rate included.

    t counts updates; Lingvo's is the global step, which counts skipped and accumulated batches too. Lingvo's
    `cond_is_finite` is what the train step does for all variables at once.
    """

    beta1: float = 0.0
    beta2: float = 0.999
    multiply_by_parameter_scale: bool = True
    clipping_threshold: float | None = None
    factored: bool = True
    decay_exponent_pow: float | None = None
    decay_exponent_offset: int = 0
    min_dim_size_to_factor: int = 128

    def __post_init__(self) -> None:
        check_fraction(self, "beta1", "beta2")
        check_positive(self, "clipping_threshold", "decay_exponent_pow", "min_dim_size_to_factor")

    def build(self) -> optax.GradientTransformationExtraArgs:
        def init(params: optax.Params) -> AdafactorState:
            return AdafactorState(jnp.zeros((), jnp.int32), jax.tree.map(self._slots, params))

        def update(
            updates: optax.Updates, state: Any, params: optax.Params | None = None, *, rate: Any = 1.0, **_: Any
        ) -> tuple[optax.Updates, AdafactorState]:
            grads, treedef = jax.tree.flatten(updates)
            decay = self._decay(state.num_updates.astype(jnp.float32))
            parts = zip(grads, treedef.flatten_up_to(state.slots), treedef.flatten_up_to(params), strict=True)
            results = [self._update(g, slots, p, decay, rate) for g, slots, p in parts]
            decrements, slots = (treedef.unflatten([result[i] for result in results]) for i in (0, 1))
            return decrements, AdafactorState(state.num_updates + 1, slots)

        return optax.GradientTransformationExtraArgs(init, update)

    def _decay(self, t: jax.Array) -> jax.Array:
        if self.decay_exponent_pow is not None:
            return 1 - (jnp.maximum(t - self.decay_exponent_offset, 0) + 1) ** -self.decay_exponent_pow
        beta2 = jnp.float32(self.beta2)
        return beta2 * (1 - beta2**t) / (1 - beta2 ** (t + 1))

    def _factored_axes(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """The axes of the two largest dimensions, the largest first; None: do not factor."""
        axes = sorted(range(len(shape)), key=lambda axis: -shape[axis])[:2]
        factor = self.factored and len(axes) == 2 and shape[axes[1]] >= self.min_dim_size_to_factor
        return (axes[0], axes[1]) if factor else None

    def _slots(self, param: jax.Array) -> dict[str, jax.Array]:
        slots = {"m": jnp.zeros_like(param)} if self.beta1 else {}
        if axes := self._factored_axes(param.shape):
            means = zip(("vr", "vc"), axes, strict=True)
            return slots | {name: jnp.zeros(_without(param.shape, axis), param.dtype) for name, axis in means}
        return slots | {"v": jnp.zeros_like(param)}

    def _update(
        self, grad: jax.Array, slots: dict[str, jax.Array], param: jax.Array, decay: jax.Array, rate: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        dtype = param.dtype
        grad = grad.astype(dtype)
        decay = decay.astype(dtype)
        squared = jnp.square(grad) + jnp.asarray(_EPSILON1, dtype)

        def average(slot: str, value: jax.Array) -> jax.Array:
            return slots[slot] * decay + value * (1 - decay)

        if axes := self._factored_axes(grad.shape):
            row_axis, column_axis = axes
            row, column = average("vr", squared.mean(row_axis)), average("vc", squared.mean(column_axis))
            slots = slots | {"vr": row, "vc": column}
            # Lingvo takes this mean over the last axis, whichever it is; with more than two dimensions it need not be
            # that of the second factor.
            row_factor = jax.lax.rsqrt(row / row.mean(-1, keepdims=True))
            step = grad * jnp.expand_dims(row_factor, row_axis)
            step = step * jnp.expand_dims(jax.lax.rsqrt(column), column_axis)
        else:
            slots = slots | {"v": average("v", squared)}
            step = grad * jax.lax.rsqrt(slots["v"])
        if self.clipping_threshold is not None:
            step = step / jnp.maximum(1.0, _rms(step) / self.clipping_threshold)
        if self.multiply_by_parameter_scale:
            rate = rate * jnp.maximum(_rms(param), _EPSILON2)
        step = step * jnp.asarray(rate, dtype)
        if self.beta1:
            step = slots["m"] * self.beta1 + step * (1 - self.beta1)
            slots = slots | {"m": step}
        return step, slots


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]
