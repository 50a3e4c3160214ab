"""Variational noise: the loss is taken at weights with Gaussian noise, in training only (Lingvo: p.train.vn_std)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from raylingvo.training.paths import matches, merge, select

if TYPE_CHECKING:
    from raylingvo.experiment import Train

# Folded into the step's key, so that the noise has nothing in common with what the task draws from that key.
_NOISE = 0x6E6F6973


def with_noise(settings: Train, params: Any, step: jax.Array, rng: jax.Array) -> Any:
    """params + normal(0, train.vn_std) from the batch number `train.vn_start_step` on.

    For variables whose path `train.vn_variables` matches (None: all). rng: the key of the step. One draw for the whole
    step: Lingvo's `global_vn`.
    """
    if not settings.vn_std:
        return params
    pattern = settings.vn_variables
    noisy = params if pattern is None else select(params, matches(pattern))
    leaves, treedef = jax.tree.flatten(noisy)

    def add() -> list[jax.Array]:
        keys = jax.random.split(jax.random.fold_in(rng, _NOISE), max(len(leaves), 1))
        return [
            x + (settings.vn_std * jax.random.normal(key, x.shape, jnp.float32)).astype(x.dtype)
            for key, x in zip(keys, leaves, strict=False)
        ]

    # Drawing as many numbers as there are weights takes a part of a step's time: not before it is needed.
    leaves = jax.lax.cond(step >= settings.vn_start_step, add, lambda: leaves)
    return merge(params, treedef.unflatten(leaves))
