"""Additive attention: v . tanh(source W + query U) (Bahdanau et al. 2015)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from raylingvo.models.layers.initializers import Initializer, uniform_sqrt_dim
from raylingvo.models.layers.source_attention import (
    Source,
    by_source,
    context_and_probabilities,
    prepare,
    probabilities,
)
from raylingvo.models.layers.variables import param
from raylingvo.ops.product import einsum

# B sources of S positions with D features, C context features, H hidden features; Q = R * B queries (source_attention).


class AdditiveAttention(nnx.Module):
    """Which positions of its source a query looks at, by a layer of H hidden features.

    Variables: source_kernel f32[D, H], query_kernel f32[features of a query, H], hidden f32[H]; no biases.
    dropout_rate: of the probabilities, in training. dtype: of all but the softmax, which is float32.
    Source: Lingvo core/attention.py, AdditiveAttention.
    """

    def __init__(
        self,
        source_features: int,
        query_features: int,
        hidden_features: int,
        *,
        rngs: nnx.Rngs,
        dropout_rate: float = 0.0,
        kernel_init: Initializer | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        kernel_init = kernel_init or uniform_sqrt_dim(3**0.5)
        self.source_kernel = param(rngs, kernel_init, (source_features, hidden_features), ("embed", "mlp"))
        self.query_kernel = param(rngs, kernel_init, (query_features, hidden_features), ("embed", "mlp"))
        self.hidden = param(rngs, kernel_init, (hidden_features,), ("mlp",))
        self.dropout_rate, self.dtype = dropout_rate, dtype

    def prepare(
        self,
        source_BxSxD: jax.Array,
        contexts_BxSxC: jax.Array,
        paddings_BxS: jax.Array | None = None,
        segment_ids_BxS: jax.Array | None = None,
    ) -> Source:
        """The source for all calls. paddings: 1.0 = padded. segment_ids: of packed sources."""
        keys_BxSxH = einsum("bsd,dh->bsh", source_BxSxD.astype(self.dtype), self.source_kernel[...].astype(self.dtype))
        return prepare(keys_BxSxH, contexts_BxSxC.astype(self.dtype), paddings_BxS, segment_ids_BxS)

    def __call__(
        self,
        source: Source,
        query_QxD: jax.Array,
        *,
        paddings_QxS: jax.Array | None = None,
        segment_ids_Q: jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """The context [Q, C] and the probabilities f32[Q, S], which are 0 where a position is not to be seen.

        Query i is of source i % B. paddings_QxS: for single queries, beside that of the source. segment_ids_Q: of the
        queries, for packed sources. Raises ValueError if Q is not a multiple of B or only one side has segment ids.
        """
        query_QxH = einsum("qd,dh->qh", query_QxD.astype(self.dtype), self.query_kernel[...].astype(self.dtype))
        query_RxBxH = by_source(query_QxH, source.keys.shape[0])
        logits_RxBxS = additive_logits(source.keys[None], query_RxBxH[:, :, None], self.hidden[...])
        probs = probabilities(logits_RxBxS, source, paddings_QxS=paddings_QxS, segment_ids_Q=segment_ids_Q)
        return context_and_probabilities(probs, source, self.dropout_rate, rng)


def additive_logits(keys: jax.Array, queries: jax.Array, hidden_H: jax.Array) -> jax.Array:
    """hidden . tanh(keys + queries) over the last axis; the other axes broadcast."""
    return jnp.tanh(keys + queries) @ hidden_H.astype(keys.dtype)
