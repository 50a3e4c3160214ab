"""What a decoder keeps between the steps of a search, and how it follows the hyps from slot to slot.

A hyp that is continued moves to another slot, and what was cached for it has to be found there. By copy: all
of the cache is gathered along its slots, at every step. By index: a row of the cache is written once, where the hyp was
then, and stays; `CacheIndex` knows where the rows of each hyp's history lie.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

# b beams, k hyps per beam, N = b*k slots (slot i is hyp i // b of beam i % b), T steps.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CacheIndex:
    """Where the history of the hyp in each slot lies in a cache that is never reordered.

    A leaf of the cache of `beam_search`, which keeps it up to date. At a step, a decoder writes what it has computed
    for slot i to place i of row `step`, attends to the rows that `mask` or `take` give, and returns the index as it is.

    step: i32[], the row to write, which is the number of steps so far.
    slots: i32[T, N], the slot in which row t of the history of slot i was written; i in rows >= step.
    """

    step: jax.Array
    slots: jax.Array

    @classmethod
    def create(cls, max_steps: int, num_slots: int) -> CacheIndex:
        """The index of an empty cache of T = max_steps rows of N = num_slots places."""
        slots_TxN = jnp.broadcast_to(jnp.arange(num_slots, dtype=jnp.int32), (max_steps, num_slots))
        return cls(jnp.zeros((), jnp.int32), slots_TxN)

    def reorder(self, parents: jax.Array) -> CacheIndex:
        """The index after a step: row `step` has been written, and slot i now continues slot parents[i] (i32[N])."""
        is_written_Tx1 = jnp.arange(self.slots.shape[0])[:, None] <= self.step
        return CacheIndex(self.step + 1, jnp.where(is_written_Tx1, self.slots[:, parents], self.slots))

    def mask(self, num_hyps_per_beam: int) -> jax.Array:
        """bool[b, k, T, k]: whether place (t, j) of a beam is of the history of the beam's hyp i, row `step` included.

        For attention of all hyps of a beam to all that is cached for it: k times the multiplications, but nothing is
        gathered, and the cache, laid out [b, heads, T*k, ..], is read once. Whether this or `take` is faster depends on
        the device; on CPUs both beat the copy if XLA can multiply by the cache as it lies (keys [b, heads, .., T*k];
        measured in benchmarks/beam_search.py).
        """
        T, N = self.slots.shape
        k = num_hyps_per_beam
        hyps_bxkxT = (self.slots // (N // k)).reshape(T, k, -1).transpose(2, 1, 0)
        is_written_T = jnp.arange(T) <= self.step
        return (hyps_bxkxT[..., None] == jnp.arange(k)[None, None, None]) & is_written_T[None, None, :, None]

    def take(self, rows: jax.Array, step_axis: int = 0, slot_axis: int = 1) -> jax.Array:
        """The history of each slot, gathered from rows [T, N, ..] (or with these axes anywhere): the same shape.

        Mask what is beyond `step`: it is not of the history.
        """
        rank = max(step_axis, slot_axis) + 1
        others = tuple(axis for axis in range(rank) if axis not in (step_axis, slot_axis))
        slots_TxN = self.slots if step_axis < slot_axis else self.slots.T
        places = [
            jnp.arange(rows.shape[axis]).reshape([-1 if i == axis else 1 for i in range(rank)]) for axis in range(rank)
        ]
        places[slot_axis] = jnp.expand_dims(slots_TxN, others)
        return rows[tuple(places)]


def reorder(cache: Any, parents: jax.Array, axes: Any = 0) -> Any:
    """The cache after a step in which slot i came to continue slot parents[i].

    Args:
      cache: any tree. A CacheIndex in it reorders itself; arrays of rank 0 stay as they are.
      parents: i32[N].
      axes: which axis of an array counts the slots, None if none does and the array stays as it is. One for all
        arrays, or a tree that is a prefix of the cache, like in_axes of jax.vmap.

    Raises:
      ValueError: an array's axis is not of length N, or axes is not a prefix of the cache.
    """
    N = len(parents)

    def reorder_leaf(path: Any, leaf: Any, axis: int | None) -> Any:
        if isinstance(leaf, CacheIndex):
            return leaf.reorder(parents)
        if axis is None or jnp.ndim(leaf) == 0:
            return leaf
        if not -leaf.ndim <= axis < leaf.ndim or leaf.shape[axis] != N:
            raise ValueError(
                f"cache{jax.tree_util.keystr(path)} must have the {N} slots on axis {axis} (it is {leaf.shape}): "
                "give the axis in cache_axes, or None if it has no slots"
            )
        return jnp.take(leaf, parents, axis=axis)

    def reorder_part(axis: int | None, part: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: reorder_leaf(path, leaf, axis), part, is_leaf=lambda x: isinstance(x, CacheIndex)
        )

    return jax.tree.map(reorder_part, axes, cache, is_leaf=lambda x: x is None)
