"""How layers make their variables: float32, and each axis with the logical name by which a mesh can shard it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

# (key, shape, dtype) -> array
Initializer = Callable[..., jax.Array]


def param(rngs: nnx.Rngs, initializer: Initializer, shape: Sequence[int], axes: Sequence[str | None]) -> nnx.Param:
    """A trained variable f32[shape]. Its metadata `axes` has a logical name, or None, for each axis.

    Raises ValueError if there is not one for each.
    """
    if len(axes) != len(shape):
        raise ValueError(f"axes must have a name for each of the {len(shape)} axes of the shape (got {tuple(axes)})")
    return nnx.Param(initializer(rngs.params(), tuple(shape), jnp.float32), axes=tuple(axes))


def logical_axes(module: nnx.Module) -> dict[str, tuple[str | None, ...]]:
    """Path of each variable, joined by "/", -> the logical names of its axes.

    Leading axes that the variable got afterwards (`nnx.vmap` over layers) are named "layers"; a variable without names
    has None for each axis.
    """
    found = {}
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        rank = len(variable.shape)
        axes = variable.get_metadata().get("axes", (None,) * rank)
        found["/".join(map(str, path))] = ("layers",) * (rank - len(axes)) + tuple(axes)
    return found
