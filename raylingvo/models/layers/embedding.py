"""Embeddings: a vector for each token (Lingvo: core/layers.py, EmbeddingLayer)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from raylingvo.models.layers.initializers import gaussian_sqrt_dim
from raylingvo.models.layers.variables import Initializer, param

# V tokens, D features.


class Embedding(nnx.Module):
    """A row of the table for each id, times sqrt(D) if `scale_sqrt_depth`.

    table: f32[V, D]; by default N(0, 1/D), so that a scaled embedding has elements of variance 1. To tie a softmax to
    it: `Softmax(..., table=embedding.table)`. dtype: of the result.

    Lingvo splits its table into `max_num_shards` for parameter servers; here a mesh shards it, by the logical axis
    "vocab".
    """

    def __init__(
        self,
        vocab_size: int,
        features: int,
        *,
        scale_sqrt_depth: bool = False,
        table_init: Initializer | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        init = table_init or _transposed(gaussian_sqrt_dim())
        self.table = param(rngs, init, (vocab_size, features), ("vocab", "embed"))
        self._scale = math.sqrt(features) if scale_sqrt_depth else 1.0
        self._dtype = dtype

    def __call__(self, ids: jax.Array) -> jax.Array:
        """i32[...] in [0, V) -> [..., D]. Rows of ids that are not below V are NaN: a wrong vocabulary is seen."""
        rows = self.table[...].at[ids].get(mode="fill", fill_value=jnp.nan).astype(self._dtype)
        return rows * jnp.asarray(self._scale, self._dtype) if self._scale != 1.0 else rows


def _transposed(init: Initializer) -> Initializer:
    return lambda key, shape, dtype=jnp.float32: init(key, shape[::-1], dtype).T
