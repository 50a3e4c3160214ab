"""T5's relative position bias: a trained number per head and bucket of distance, added to attention logits.

B batch, T queries, S keys, N heads, J buckets, R distances.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from raylingvo.models.layers.initializers import gaussian
from raylingvo.models.layers.variables import param
from raylingvo.ops.product import einsum


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelativeBiasConfig:
    """num_buckets: half of them for exact distances, the others for distances up to `max_distance`, on a log scale.

    bidirectional: half of the buckets are for keys after the query; otherwise those count as distance 0.
    The defaults are those of T5 and of GShard's language models.
    """

    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = False

    def __post_init__(self) -> None:
        least = 4 if self.bidirectional else 2
        if self.num_buckets < least or self.num_buckets % least:
            raise ValueError(f"num_buckets must be a multiple of {least} (got {self.num_buckets})")
        if self.max_distance <= self._exact:
            raise ValueError(f"max_distance must be > {self._exact}, the exact distances (got {self.max_distance})")

    @property
    def _exact(self) -> int:
        return self.num_buckets // (4 if self.bidirectional else 2)

    def bucket(self, offset: jax.Array) -> jax.Array:
        """i32 offset of a key from its query (key - query) -> i32 bucket in [0, num_buckets)."""
        buckets, exact = self.num_buckets, self._exact
        base = jnp.zeros_like(offset)
        if self.bidirectional:
            buckets //= 2
            base = jnp.where(offset > 0, buckets, 0)
            distance = jnp.abs(offset)
        else:
            distance = jnp.maximum(-offset, 0)
        # The logarithm of 0 is not used, but its NaN would be found by jax_debug_nans.
        ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / jnp.log(self.max_distance / exact)
        far = exact + (ratio * (buckets - exact)).astype(offset.dtype)
        return base + jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))


class RelativeBias(nnx.Module):
    """The table f32[N, J], N(0, 1 / (N * J)) as in GShard."""

    def __init__(self, config: RelativeBiasConfig, num_heads: int, *, rngs: nnx.Rngs) -> None:
        self.config = config
        shape = (num_heads, config.num_buckets)
        self.table = param(rngs, gaussian((num_heads * config.num_buckets) ** -0.5), shape, ("heads", None))

    def __call__(self, num_queries: int, num_keys: int) -> jax.Array:
        """f32[1, N, T, S] for queries at 0 ... T - 1 and keys at 0 ... S - 1."""
        # Only T + S distances differ. One matrix product fetches them, and rows that are read from a repetition of
        # them, each one later than the row above, are the bias: neither needs a scatter in the backward pass.
        offset_R = jnp.arange(-num_queries + 1, num_keys + 1)
        one_hot_RxJ = jax.nn.one_hot(self.config.bucket(offset_R), self.config.num_buckets, dtype=jnp.float32)
        value_NxR = einsum("nj,rj->nr", self.table[...], one_hot_RxJ)
        heads, distances = value_NxR.shape
        row = distances - 1
        repeated = jnp.tile(value_NxR, (1, num_queries))[:, num_queries - 1 : num_queries - 1 + num_queries * row]
        return repeated.reshape(1, heads, num_queries, row)[..., :num_keys]

    def at(self, query_positions_BxT: jax.Array, key_positions_BxS: jax.Array) -> jax.Array:
        """f32[B, N, T, S] for these positions, i32. Either batch may be 1."""
        bucket_BxTxS = self.config.bucket(key_positions_BxS[:, None, :] - query_positions_BxT[:, :, None])
        return jnp.moveaxis(jnp.take(self.table[...], bucket_BxTxS, axis=1), 0, 1)
