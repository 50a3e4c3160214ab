"""Location-sensitive attention: additive, and it sees where it looked before (Chorowski et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from raylingvo.models.layers.additive_attention import additive_logits
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

# B sources of S positions with D features, C context features, H hidden features; Q = R * B queries (source_attention);
# L location features, F filters of K positions.

LocationFeature = Literal["previous", "cumulative"]


class LocationSensitiveAttention(nnx.Module):
    """Additive attention, to whose hidden features a convolution over the probabilities of earlier queries adds.

    Variables: source_kernel f32[D, H], query_kernel f32[features of a query, H], hidden f32[H], location_filter
    f32[K, L, F], location_kernel f32[F, H].
    location_features: "previous", the probabilities of the query before; "cumulative", their sum so far.
    filter_size, num_filters: K and F. The filter is centred, with zeros around the source.
    dropout_rate: of the probabilities, in training. dtype: of all but the softmax and the state, which are float32.
    Raises ValueError if filter_size is not odd or a location feature is unknown.
    Source: Lingvo core/attention.py, LocationSensitiveAttention.
    """

    def __init__(
        self,
        source_features: int,
        query_features: int,
        hidden_features: int,
        *,
        filter_size: int,
        num_filters: int,
        rngs: nnx.Rngs,
        location_features: Sequence[LocationFeature] = ("previous",),
        dropout_rate: float = 0.0,
        kernel_init: Initializer | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        if filter_size < 1 or filter_size % 2 == 0:
            raise ValueError(f"filter_size must be odd (got {filter_size})")
        if not location_features or not set(location_features) <= set(get_args(LocationFeature)):
            raise ValueError(
                f"location_features must be of {', '.join(get_args(LocationFeature))} (got {tuple(location_features)})"
            )
        kernel_init = kernel_init or uniform_sqrt_dim(3**0.5)
        self.location_features = tuple(location_features)
        self.source_kernel = param(rngs, kernel_init, (source_features, hidden_features), ("embed", "mlp"))
        self.query_kernel = param(rngs, kernel_init, (query_features, hidden_features), ("embed", "mlp"))
        self.hidden = param(rngs, kernel_init, (hidden_features,), ("mlp",))
        shape = (filter_size, len(location_features), num_filters)
        self.location_filter = param(rngs, kernel_init, shape, (None, None, None))
        self.location_kernel = param(rngs, kernel_init, (num_filters, hidden_features), (None, "mlp"))
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

    def initial_state(self, num_queries: int, source_length: int) -> jax.Array:
        """f32[Q, L, S]: all of the attention has been at position 0."""
        shape = (num_queries, len(self.location_features), source_length)
        return jnp.zeros(shape).at[:, :, 0].set(1.0)

    def __call__(
        self,
        source: Source,
        query_QxD: jax.Array,
        state_QxLxS: jax.Array,
        *,
        paddings_QxS: jax.Array | None = None,
        segment_ids_Q: jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The context [Q, C], the probabilities f32[Q, S] and the next state f32[Q, L, S].

        Other arguments and errors as those of `AdditiveAttention`.
        """
        location_QxSxF = _convolve(state_QxLxS.astype(self.dtype), self.location_filter[...].astype(self.dtype))
        location_QxSxH = einsum("qsf,fh->qsh", location_QxSxF, self.location_kernel[...].astype(self.dtype))
        query_QxH = einsum("qd,dh->qh", query_QxD.astype(self.dtype), self.query_kernel[...].astype(self.dtype))
        queries_RxBxSxH = by_source(location_QxSxH + query_QxH[:, None], source.keys.shape[0])
        logits_RxBxS = additive_logits(source.keys[None], queries_RxBxSxH, self.hidden[...])
        probs = probabilities(logits_RxBxS, source, paddings_QxS=paddings_QxS, segment_ids_Q=segment_ids_Q)
        context_QxC, probs_QxS = context_and_probabilities(probs, source, self.dropout_rate, rng)
        next_state = {
            "previous": lambda old_QxS: probs_QxS,
            "cumulative": lambda old_QxS: old_QxS + probs_QxS,
        }
        features = [next_state[name](state_QxLxS[:, i]) for i, name in enumerate(self.location_features)]
        return context_QxC, probs_QxS, jnp.stack(features, axis=1)


def _convolve(x_QxLxS: jax.Array, filter_KxLxF: jax.Array) -> jax.Array:
    """[Q, S, F]: windows of K positions around each, as one product; XLA's convolution is slow with so few channels."""
    size, length = filter_KxLxF.shape[0], x_QxLxS.shape[2]
    padded = jnp.pad(x_QxLxS, ((0, 0), (0, 0), (size // 2, size // 2)))
    windows_KxQxLxS = jnp.stack([padded[:, :, i : i + length] for i in range(size)])
    return einsum("kqls,klf->qsf", windows_KxQxLxS, filter_KxLxF)
