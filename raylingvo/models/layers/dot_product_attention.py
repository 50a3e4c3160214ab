"""Dot-product attention, whose queries can have a trained scale for each feature."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from raylingvo.models.layers.initializers import zeros
from raylingvo.models.layers.query_scale import scale_queries
from raylingvo.models.layers.source_attention import (
    Source,
    by_source,
    context_and_probabilities,
    prepare,
    probabilities,
)
from raylingvo.models.layers.variables import param
from raylingvo.ops.product import einsum

# B sources of S positions with D features, C context features; Q = R * B queries (source_attention).


class DotProductAttention(nnx.Module):
    """Which positions of its source a query looks at, by the dot product of query * scale and source.

    Variable: per_dim_scale f32[D], at first 0: see `query_scale`. per_dim_scale=False: there is none, the scale
    is 1 / sqrt(D).
    logit_cap: c > 0: c * tanh(logits / c) before the softmax; None: no cap.
    dropout_rate: of the probabilities, in training. dtype: of all but the softmax, which is float32.
    Source: Lingvo core/attention.py, DotProductAttention.
    """

    def __init__(
        self,
        features: int,
        *,
        rngs: nnx.Rngs,
        per_dim_scale: bool = True,
        logit_cap: float | None = None,
        dropout_rate: float = 0.0,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        if logit_cap is not None and not logit_cap > 0:
            raise ValueError(f"logit_cap must be > 0 or None (got {logit_cap})")
        self.per_dim_scale = param(rngs, zeros, (features,), ("head_dim",)) if per_dim_scale else None
        self.logit_cap, self.dropout_rate, self.dtype = logit_cap, dropout_rate, dtype

    def prepare(
        self,
        source_BxSxD: jax.Array,
        contexts_BxSxC: jax.Array,
        paddings_BxS: jax.Array | None = None,
        segment_ids_BxS: jax.Array | None = None,
    ) -> Source:
        """The source for all calls. paddings: 1.0 = padded. segment_ids: of packed sources."""
        return prepare(
            source_BxSxD.astype(self.dtype), contexts_BxSxC.astype(self.dtype), paddings_BxS, segment_ids_BxS
        )

    def __call__(
        self,
        source: Source,
        query_QxD: jax.Array,
        *,
        paddings_QxS: jax.Array | None = None,
        segment_ids_Q: jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """The context [Q, C] and the probabilities f32[Q, S]; arguments and errors as those of `AdditiveAttention`."""
        query_QxD = scale_queries(query_QxD.astype(self.dtype), self.per_dim_scale)
        query_RxBxD = by_source(query_QxD, source.keys.shape[0])
        logits_RxBxS = einsum("rbd,bsd->rbs", query_RxBxD, source.keys)
        probs = probabilities(
            logits_RxBxS, source, paddings_QxS=paddings_QxS, segment_ids_Q=segment_ids_Q, cap=self.logit_cap
        )
        return context_and_probabilities(probs, source, self.dropout_rate, rng)
