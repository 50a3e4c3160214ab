"""A Transformer that predicts tokens (Lingvo: core/gshard_builder.py, and GPipeTransformerLm of tasks/lm/layers.py)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from raylingvo.models.layers.attention import KeyValues
from raylingvo.models.layers.dropout import dropout, split
from raylingvo.models.layers.embedding import Embedding
from raylingvo.models.layers.initializers import gaussian
from raylingvo.models.layers.positions import LearnedPositions, sinusoid
from raylingvo.models.layers.softmax import Softmax
from raylingvo.models.layers.transformer import Transformer, TransformerConfig
from raylingvo.models.lm.language_model import NextTokenModel
from raylingvo.models.task import Batch

# B rows, T tokens, D features, L new places of S in a cache.


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerLm(NextTokenModel):
    """Embedding, `stack`, softmax. Causal or not as the stack is.

    learned_positions: so many positions have a trained vector, which is added to the embedding; 0: none, positions are
    then known by the stack's attention (rotary, relative bias). sinusoid_positions: `positions.sinusoid` is added
    instead. embedding_stddev: of its initial normal distribution, and of the positions'. dropout: of what enters the
    stack. tied_softmax: the softmax has no bias, and the embedding's table for its kernel; features are multiplied by
    D^-0.5 before it: with an embedding of deviation 1, logits start at that of 1. Otherwise it has its own kernel and
    a bias, and features are as they are. classes_per_chunk, tokens_per_chunk: see `Softmax`.
    """

    stack: TransformerConfig
    learned_positions: int = 0
    sinusoid_positions: bool = False
    tied_softmax: bool = True
    embedding_stddev: float = 1.0
    dropout: float = 0.0
    classes_per_chunk: int = 0
    tokens_per_chunk: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learned_positions < 0:
            raise ValueError(f"learned_positions must be >= 0 (got {self.learned_positions})")
        if self.learned_positions and self.sinusoid_positions:
            raise ValueError(f"learned_positions must be 0 with sinusoid_positions (got {self.learned_positions})")
        if self.sinusoid_positions and self.stack.attention.model_dim % 2:
            got = self.stack.attention.model_dim
            raise ValueError(f"stack.attention.model_dim must be even with sinusoid_positions (got {got})")
        if not self.embedding_stddev > 0:
            raise ValueError(f"embedding_stddev must be > 0 (got {self.embedding_stddev})")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1) (got {self.dropout})")

    @property
    def is_causal(self) -> bool:
        return self.stack.causal

    @property
    def has_aux_loss(self) -> bool:
        return self.stack.moe is not None

    @property
    def has_cache(self) -> bool:
        return self.stack.causal

    @property
    def max_length(self) -> int | None:
        return self.learned_positions or None

    def build(self, rngs: nnx.Rngs) -> TransformerLmModule:
        return TransformerLmModule(self, rngs)


class TransformerLmModule(nnx.Module):
    """The network: `embedding.table` f32[V, D], tied also the softmax's kernel; `positions`; `stack`; `softmax`."""

    def __init__(self, config: TransformerLm, rngs: nnx.Rngs) -> None:
        features, dtype = config.stack.attention.model_dim, jnp.dtype(config.compute_dtype)
        init = gaussian(config.embedding_stddev)
        self.embedding = Embedding(config.vocab_size, features, table_init=init, dtype=dtype, rngs=rngs)
        longest = config.learned_positions
        self.positions = LearnedPositions(longest, features, initializer=init, rngs=rngs) if longest else None
        self.stack = Transformer(config.stack, rngs=rngs, dtype=dtype)
        self.softmax = Softmax(
            features,
            config.vocab_size,
            bias=not config.tied_softmax,
            table=self.embedding.table if config.tied_softmax else None,
            classes_per_chunk=config.classes_per_chunk,
            tokens_per_chunk=config.tokens_per_chunk,
            dtype=dtype,
            rngs=rngs,
        )
        self._longest, self._dropout = longest, config.dropout
        self._sinusoid = config.sinusoid_positions
        self._scale = features**-0.5 if config.tied_softmax else 1.0

    def __call__(self, batch: Batch, *, rng: jax.Array | None = None) -> jax.Array:
        """Features [B, T, D]. A key `rng` means training. See `with_aux_loss`."""
        return self.with_aux_loss(batch, rng=rng)[0]

    def with_aux_loss(self, batch: Batch, *, rng: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Features [B, T, D], and the auxiliary loss f32[] of mixtures of experts.

        batch: ids i32[B, T]; of packed rows also segment_ids and segment_pos i32[B, T]; of others paddings f32[B, T],
        which a causal stack without experts does not look at: what is padded comes last, and reaches nothing that
        counts. Raises ValueError for rows longer than the learned positions.
        """
        embedding_rng, stack_rng = split(rng, 2)
        ids_BxT = batch["ids"]
        positions = batch.get("segment_pos", jnp.arange(ids_BxT.shape[1])[None])
        if self.positions is not None and ids_BxT.shape[1] > self._longest:
            got = ids_BxT.shape[1]
            raise ValueError(f"rows must have at most the {self._longest} learned_positions (got {got})")
        x_BxTxD = dropout(self._embed(ids_BxT, positions), self._dropout, embedding_rng)
        segment_ids = batch.get("segment_ids")
        config = self.stack.config
        padded = segment_ids is None and (not config.causal or config.moe is not None)
        found = self.stack(
            x_BxTxD, paddings=batch["paddings"] if padded else None, segment_ids=segment_ids, rng=stack_rng
        )
        return found.output * self._scale, found.aux_loss

    def init_cache(self, batch_size: int, max_length: int) -> tuple[KeyValues, ...]:
        """An empty cache of `max_length` places for each row."""
        return self.stack.init_cache(batch_size, max_length)

    def extend_step(
        self,
        ids_BxL: jax.Array,
        cache: tuple[KeyValues, ...],
        index: jax.Array,
        *,
        mask: jax.Array,
        positions: jax.Array,
        key_positions: jax.Array,
        nonpadding: jax.Array,
    ) -> tuple[jax.Array, Any]:
        """As `generation.CachedModule.extend_step`. Positions are below the learned ones: see `max_length`."""
        found, cache = self.stack.extend_step(
            self._embed(ids_BxL, positions),
            cache,
            index,
            mask=mask,
            positions=positions,
            key_positions=key_positions,
            nonpadding=nonpadding if self.stack.config.moe is not None else None,
        )
        return found.output * self._scale, cache

    def _embed(self, ids_BxT: jax.Array, positions: jax.Array) -> jax.Array:
        x_BxTxD = self.embedding(ids_BxT)
        if self.positions is not None:
            at_BxTxD = self.positions(positions)
        elif self._sinusoid:
            at_BxTxD = sinusoid(positions, x_BxTxD.shape[-1])
        else:
            return x_BxTxD
        return x_BxTxD + jnp.broadcast_to(at_BxTxD.astype(x_BxTxD.dtype), x_BxTxD.shape)
