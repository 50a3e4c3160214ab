"""Self-attention to a window, by blocks of queries: time and memory linear in the length.

B batch, T time, N heads, K key/value heads, H dimension of a head, U blocks, W queries of a block, C keys it may see.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from raylingvo.models.layers.masks import window_mask
from raylingvo.models.layers.relative_bias import RelativeBias
from raylingvo.models.layers.scaled_softmax import softmax_context


def local_context(
    query_BxTxNxH: jax.Array,
    key_BxTxKxH: jax.Array,
    value_BxTxKxH: jax.Array,
    segment_ids_BxT: jax.Array | None,
    *,
    left_context: int,
    right_context: int,
    block_size: int,
    bias: RelativeBias | None = None,
    logit_cap: float | None = None,
    extra_logit: float | None = None,
    drop: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> jax.Array:
    """The context [B, T, N, H] of queries that see `left_context - 1` positions before and `right_context` after them.

    segment_ids: i32[B, T]: only positions of the query's segment are seen. None: all are of one segment.
    Same result as `softmax_context` with a window's mask (Lingvo: LocalSelfAttention).
    """
    B, T, N, H = query_BxTxNxH.shape
    W = block_size
    U = -(-T // W)
    before, after = -(-(left_context - 1) // W), -(-right_context // W)

    def blocks(x: jax.Array, fill: int = 0) -> jax.Array:
        padded = jnp.pad(x, ((0, 0), (0, U * W - T)) + ((0, 0),) * (x.ndim - 2), constant_values=fill)
        return padded.reshape(B, U, W, *x.shape[2:])

    def context_blocks(x: jax.Array, fill: int = 0) -> jax.Array:
        """Each block with its neighbours: [B, U, C, ...]. Shifted copies: backward, that is slices and sums."""
        wide = ((0, 0), (before, after)) + ((0, 0),) * x.ndim
        padded = jnp.pad(blocks(x, fill), wide[: x.ndim + 1], constant_values=fill)
        return jnp.concatenate([padded[:, shift : shift + U] for shift in range(before + 1 + after)], axis=2)

    if segment_ids_BxT is None:
        segment_ids_BxT = jnp.zeros((B, T), jnp.int32)
    query_segment_BxUxW = blocks(segment_ids_BxT, -1)
    key_segment_BxUxC = context_blocks(segment_ids_BxT, -1)
    query_at_W, key_at_C = before * W + jnp.arange(W), jnp.arange((before + 1 + after) * W)
    window_1x1xWxC = window_mask(query_at_W, key_at_C, left_context, right_context)
    mask_BxUxWxC = (query_segment_BxUxW[..., None] == key_segment_BxUxC[:, :, None, :]) & jnp.broadcast_to(
        window_1x1xWxC, (B, U, *window_1x1xWxC.shape[2:])
    )

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(B * U, *x.shape[2:])

    context, _ = softmax_context(
        flat(blocks(query_BxTxNxH)),
        flat(context_blocks(key_BxTxKxH)),
        flat(context_blocks(value_BxTxKxH)),
        mask=flat(mask_BxUxWxC)[:, None],
        bias=None if bias is None else bias.at(query_at_W[None], key_at_C[None]),
        logit_cap=logit_cap,
        extra_logit=extra_logit,
        drop=drop,
    )
    return context.reshape(B, U * W, N, H)[:, :T]
