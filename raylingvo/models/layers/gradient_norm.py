"""A bound on the gradient of a part of a model."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx

M = TypeVar("M", bound=nnx.Module)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def clip_gradient_norm(tree: Any, max_norm: float) -> Any:
    """`tree` as it is. Its gradient is scaled so that the L2 norm over all its arrays is at most `max_norm`.

    A gradient that is not finite stays so. Differentiable in reverse mode only.
    """
    del max_norm
    return tree


def _forward(tree: Any, max_norm: float) -> tuple[Any, None]:
    return clip_gradient_norm(tree, max_norm), None


def _backward(max_norm: float, residuals: None, gradients: Any) -> tuple[Any]:
    del residuals
    norm = optax.tree.norm(gradients)
    scale = max_norm / jnp.maximum(norm, max_norm)
    return (jax.tree.map(lambda g: g * scale.astype(g.dtype), gradients),)


clip_gradient_norm.defvjp(_forward, _backward)


def with_clipped_gradient(module: M, max_norm: float) -> M:
    """The same module, the gradient of whose trained variables together has a norm of at most `max_norm`.

    For use inside a loss: what it computes must not change its variables. (Lingvo: max_lstm_gradient_norm of
    tasks/lm/model.py.)
    """
    definition, params, rest = nnx.split(module, nnx.Param, ...)
    return nnx.merge(definition, clip_gradient_norm(params, max_norm), rest)
