"""Attention of decoder states over the positions of a source: what its kinds share."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from raylingvo.models.layers.dropout import dropout
from raylingvo.models.layers.masks import MASKED
from raylingvo.ops.product import einsum

# B sources of S positions, C context features; R queries for each source, B fastest: query i is of source i % B.
# (So it is in beam search, whose slots are hyp-major, and in all frames of a target at once, if time-major.)


class Source(NamedTuple):
    """A source, prepared once for all queries."""

    keys: jax.Array  # [B, S, ...], as the attention that prepared it needs them
    contexts: jax.Array  # [B, S, ..., C], of which queries get the means
    paddings: jax.Array  # [B, S], 1.0 = padded
    segment_ids: jax.Array | None = None  # i32[B, S], of packed sources: queries see positions of their own segment


def prepare(
    keys: jax.Array, contexts: jax.Array, paddings_BxS: jax.Array | None, segment_ids_BxS: jax.Array | None
) -> Source:
    """A Source; without paddings, no position is padded."""
    if paddings_BxS is None:
        paddings_BxS = jnp.zeros(keys.shape[:2])
    return Source(keys, contexts, paddings_BxS, segment_ids_BxS)


def by_source(x: jax.Array, num_sources: int) -> jax.Array:
    """[R * B, ...] as [R, B, ...]. Raises ValueError if the queries are not as many for each source."""
    if x.shape[0] % num_sources:
        raise ValueError(f"the number of queries must be a multiple of {num_sources} sources (got {x.shape[0]})")
    return x.reshape(-1, num_sources, *x.shape[1:])


def probabilities(
    logits_RxBxS: jax.Array,
    source: Source,
    *,
    paddings_QxS: jax.Array | None = None,
    segment_ids_Q: jax.Array | None = None,
    cap: float | None = None,
) -> jax.Array:
    """Softmax, in float32, over the positions that a query may see; over all of them if it may see none.

    logits: [R, B, S], or [R, B, N, S] of N heads.
    paddings_QxS: of single queries, Q = R * B, beside that of the source.
    segment_ids_Q: of the queries; needed if the source is packed.
    cap: logits become cap * tanh(logits / cap) first.
    Raises ValueError if one of source and queries has segment ids and the other has none.
    """
    if (source.segment_ids is None) != (segment_ids_Q is None):
        raise ValueError("segment_ids must be given for both the source and the queries, or for neither")
    num_sources = source.paddings.shape[0]
    masked_RxBxS = jnp.broadcast_to(source.paddings[None] > 0, (logits_RxBxS.shape[0], *source.paddings.shape))
    if paddings_QxS is not None:
        masked_RxBxS |= by_source(paddings_QxS, num_sources) > 0
    if segment_ids_Q is not None and source.segment_ids is not None:
        masked_RxBxS |= by_source(segment_ids_Q, num_sources)[..., None] != source.segment_ids[None]
    logits = logits_RxBxS.astype(jnp.float32)
    if cap is not None:
        logits = cap * jnp.tanh(logits / cap)
    masked = masked_RxBxS[:, :, None] if logits.ndim == 4 else masked_RxBxS
    return jax.nn.softmax(jnp.where(masked, MASKED, logits), axis=-1)


def context_and_probabilities(
    probs_RxBxS: jax.Array, source: Source, dropout_rate: float, rng: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The mean of the contexts [Q, C], from probabilities after dropout, and the probabilities f32[Q, S] before it."""
    dropped = dropout(probs_RxBxS, dropout_rate, rng).astype(source.contexts.dtype)
    context_RxBxC = einsum("rbs,bsc->rbc", dropped, source.contexts)
    return (context_RxBxC.reshape(-1, context_RxBxC.shape[-1]), probs_RxBxS.reshape(-1, probs_RxBxS.shape[-1]))
