"""Who may attend to whom: bool[B or 1, 1, T, S], True where query t may see key s.

A mask is built once for a batch and passed to every layer. B batch, T queries, S keys.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# The logit of what is not to be seen. Lingvo's: far below every other, and far enough from -inf that a sum of two is
# finite; where everything is masked, all keys are alike.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def causal_mask(length: int) -> jax.Array:
    """bool[1, 1, T, T]: each position sees itself and those before it."""
    position_T = jnp.arange(length)
    return (position_T[None, :] <= position_T[:, None])[None, None]


def window_mask(
    query_position_T: jax.Array, key_position_S: jax.Array, left_context: int | None, right_context: int | None
) -> jax.Array:
    """bool[1, 1, T, S]: keys from `left_context - 1` before a query to `right_context` after it; None has no limit.

    positions: i32[T] and i32[S]. As in Lingvo's LocalSelfAttention the left context counts the query's own position.
    """
    offset_TxS = key_position_S[None, :] - query_position_T[:, None]
    seen_TxS = jnp.ones(offset_TxS.shape, bool)
    if left_context is not None:
        seen_TxS &= offset_TxS > -left_context
    if right_context is not None:
        seen_TxS &= offset_TxS <= right_context
    return seen_TxS[None, None]


def padding_mask(paddings_BxS: jax.Array) -> jax.Array:
    """bool[B, 1, 1, S]: keys that are not padded (paddings f32[B, S], 1.0 = padded)."""
    return (paddings_BxS == 0)[:, None, None, :]


def segment_mask(query_segment_ids_BxT: jax.Array, key_segment_ids_BxS: jax.Array | None = None) -> jax.Array:
    """bool[B, 1, T, S]: keys of the query's own segment. The keys' segment ids are the queries' by default.

    Padding (segment 0) sees padding, and nothing else does, so that no row is empty (Lingvo: SegmentMask).
    """
    keys = query_segment_ids_BxT if key_segment_ids_BxS is None else key_segment_ids_BxS
    return (query_segment_ids_BxT[:, :, None] == keys[:, None, :])[:, None]


def combine_masks(*masks: jax.Array | None) -> jax.Array | None:
    """What all of the masks allow; those that are None allow everything."""
    combined = None
    for mask in masks:
        if mask is not None:
            combined = mask if combined is None else jnp.logical_and(*jnp.broadcast_arrays(combined, mask))
    return combined
