"""The Transformer of machine translation (Lingvo: SetupTransformerParams, tasks/mt/base_config.py)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from raylingvo.models.layers.attention import AttentionConfig, QueryScale
from raylingvo.models.layers.dropout import dropout, split
from raylingvo.models.layers.embedding import Embedding
from raylingvo.models.layers.feed_forward import FeedForwardConfig
from raylingvo.models.layers.initializers import gaussian
from raylingvo.models.layers.positions import sinusoid
from raylingvo.models.layers.residual import ResidualConfig
from raylingvo.models.layers.softmax import Softmax
from raylingvo.models.layers.transformer import HypKeyValues, Transformer, TransformerConfig
from raylingvo.models.mt.model import Predicted, TranslationModel
from raylingvo.models.task import Batch
from raylingvo.ops import CacheIndex
from raylingvo.ops.product import Remat

# B pairs, S source positions, T target positions, L positions of either, D features, V words; N slots of a search.

SharedEmbeddings = Literal["none", "target", "all"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerModel(TranslationModel):
    """Encoder and decoder of a Transformer. The defaults are those of `mt.wmt14_en_de.WmtEnDeTransformerBase`.

    norm_position: "pre": of each sub-layer's input; "post": of its sum with the input.
    normalized_residual: attention adds its output to the normalised input (only "pre"), as Lingvo does; feed-forward
      sub-layers always add to the input as it is.
    final_norm: a norm of what the encoder and the decoder give, which Lingvo's have not.
    query_scale: of attention, see `AttentionConfig`. attention_init_scale: of its Xavier initialisation.
    shared_embeddings: "target": the softmax's kernel is the table of the target's embedding; "all": also the source's,
      for one vocabulary of both languages. Lingvo has three of their own ("none").
    input_dropout: of embeddings with positions. residual_dropout: of what a sub-layer gives. relu_dropout: within the
      feed-forward. attention_dropout: of attention's probabilities.
    scan, remat: see `TransformerConfig`.
    """

    model_dim: int = 512
    hidden_dim: int = 2048
    num_heads: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    norm_position: Literal["pre", "post"] = "pre"
    normalized_residual: bool = True
    final_norm: bool = False
    query_scale: QueryScale = "per_dim"
    attention_init_scale: float = 1.0
    shared_embeddings: SharedEmbeddings = "none"
    input_dropout: float = 0.1
    residual_dropout: float = 0.1
    relu_dropout: float = 0.0
    attention_dropout: float = 0.0
    scan: bool = False
    remat: Remat | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model_dim < 2 or self.model_dim % 2:
            raise ValueError(f"model_dim must be even and > 0, for sinusoid positions (got {self.model_dim})")
        if not 0 <= self.input_dropout < 1:
            raise ValueError(f"input_dropout must be in [0, 1) (got {self.input_dropout})")
        if self.shared_embeddings not in get_args(SharedEmbeddings):
            kinds = get_args(SharedEmbeddings)
            raise ValueError(f"shared_embeddings must be one of {kinds} (got {self.shared_embeddings!r})")
        if self.normalized_residual and self.norm_position != "pre":
            raise ValueError(f"normalized_residual must be False with norm_position {self.norm_position!r} (got True)")
        if self.shared_embeddings == "all" and self.source_vocab_size != self.target_vocab_size:
            sizes = self.source_vocab_size, self.target_vocab_size
            raise ValueError(f"shared_embeddings 'all' needs vocabularies of one size (got {sizes[0]} and {sizes[1]})")
        # What is wrong with the other fields is told by the configurations made of them.
        for decoder in (False, True):
            self.stack(decoder=decoder)

    def stack(self, *, decoder: bool) -> TransformerConfig:
        """The layers of the decoder, or of the encoder."""
        attention = AttentionConfig(
            model_dim=self.model_dim,
            num_heads=self.num_heads,
            query_scale=self.query_scale,
            init_scale=self.attention_init_scale,
            dropout_rate=self.attention_dropout,
        )
        residual = ResidualConfig(position=self.norm_position, dropout_rate=self.residual_dropout)
        return TransformerConfig(
            num_layers=self.num_decoder_layers if decoder else self.num_encoder_layers,
            attention=attention,
            cross_attention=attention if decoder else None,
            feed_forward=FeedForwardConfig(hidden_dim=self.hidden_dim, dropout_rate=self.relu_dropout),
            residual=residual,
            attention_residual=dataclasses.replace(residual, skip="normalized") if self.normalized_residual else None,
            causal=decoder,
            final_norm=self.final_norm,
            scan=self.scan,
            remat=self.remat,
        )

    def build(self, rngs: nnx.Rngs) -> TransformerModule:
        return TransformerModule(self, rngs)


class EncodedSource(NamedTuple):
    """What the decoder's steps need of sources: keys and values for each layer, and real positions i32[B]."""

    layers: tuple[HypKeyValues, ...]
    lengths: jax.Array


class TransformerModule(nnx.Module):
    """The network: `source_embedding` f32[V, D], `target_embedding`, `encoder`, `decoder`, `softmax`."""

    def __init__(self, config: TransformerModel, rngs: nnx.Rngs) -> None:
        dim, dtype = config.model_dim, jnp.dtype(config.compute_dtype)
        init = gaussian(dim**-0.5)

        def embedding(vocab_size: int) -> Embedding:
            return Embedding(vocab_size, dim, scale_sqrt_depth=True, table_init=init, dtype=dtype, rngs=rngs)

        self.source_embedding = embedding(config.source_vocab_size)
        all_shared = config.shared_embeddings == "all"
        self.target_embedding = self.source_embedding if all_shared else embedding(config.target_vocab_size)
        self.encoder = Transformer(config.stack(decoder=False), rngs=rngs, dtype=dtype)
        self.decoder = Transformer(config.stack(decoder=True), rngs=rngs, dtype=dtype)
        self.softmax = Softmax(
            dim,
            config.target_vocab_size,
            kernel_init=init,
            table=None if config.shared_embeddings == "none" else self.target_embedding.table,
            dtype=dtype,
            rngs=rngs,
        )
        self._input_dropout = config.input_dropout

    def __call__(self, batch: Batch, *, rng: jax.Array | None = None) -> Predicted:
        """As `TranslationModule`."""
        encoder_rng, decoder_rng = split(rng, 2)
        return self.predict(
            self.encode_embedded(self.embed_source(batch), batch, rng=encoder_rng),
            self.embed_target(batch),
            batch,
            rng=decoder_rng,
        )

    def embed_source(self, batch: Batch) -> jax.Array:
        """[B, S, D], without positions."""
        return self.source_embedding(batch["src_ids"])

    def embed_target(self, batch: Batch) -> jax.Array:
        """[B, T, D], without positions."""
        return self.target_embedding(batch["tgt_ids"])

    def encode_embedded(self, x_BxSxD: jax.Array, batch: Batch, *, rng: jax.Array | None = None) -> jax.Array:
        """The encoder's output [B, S, D] for embedded sources. batch: src_paddings, or src_segment_ids and _pos."""
        input_rng, stack_rng = split(rng, 2)
        x_BxSxD = self._input(x_BxSxD, batch.get("src_segment_pos"), input_rng)
        if "src_segment_ids" in batch:
            return self.encoder(x_BxSxD, segment_ids=batch["src_segment_ids"], rng=stack_rng).output
        return self.encoder(x_BxSxD, paddings=batch["src_paddings"], rng=stack_rng).output

    def predict(
        self, source_BxSxD: jax.Array, x_BxTxD: jax.Array, batch: Batch, *, rng: jax.Array | None = None
    ) -> Predicted:
        """What the decoder makes of embedded targets and the encoder's output. batch: paddings, or segments."""
        input_rng, stack_rng = split(rng, 2)
        x_BxTxD = self._input(x_BxTxD, batch.get("tgt_segment_pos"), input_rng)
        # Paddings of targets are not looked at: they come last, and reach nothing that counts.
        found = self.decoder(
            x_BxTxD,
            segment_ids=batch.get("tgt_segment_ids"),
            source=source_BxSxD,
            source_paddings=None if "src_segment_ids" in batch else batch["src_paddings"],
            source_segment_ids=batch.get("src_segment_ids"),
            with_source_probs=True,
            rng=stack_rng,
        )
        assert found.source_probs is not None
        return Predicted(found.output, found.source_probs)

    def encode(self, batch: Batch) -> EncodedSource:
        """As `TranslationModule`."""
        encoded_BxSxD = self.encode_embedded(self.embed_source(batch), batch)
        length_B = (1 - batch["src_paddings"]).sum(axis=1).astype(jnp.int32)
        return EncodedSource(self.decoder.project_source_for_hyps(encoded_BxSxD), length_B)

    def init_cache(self, source: EncodedSource, num_hyps: int, max_steps: int) -> Any:
        """As `TranslationModule`: keys and values of each layer, and a CacheIndex."""
        slots = len(source.lengths) * num_hyps
        return self.decoder.init_hyp_cache(slots, max_steps), CacheIndex.create(max_steps, slots)

    @property
    def cache_axes(self) -> Any:
        """As `TranslationModule`: what is written stays where it is."""
        return None, 0

    def step(self, ids_N: jax.Array, source: EncodedSource, cache: Any) -> tuple[jax.Array, jax.Array, Any]:
        """As `TranslationModule`."""
        layers, index = cache
        x_NxD = self._input(self.target_embedding(ids_N[:, None]), index.step[None, None], None)[:, 0]
        found, layers = self.decoder.extend_hyps(x_NxD, layers, index, source.layers, source.lengths)
        assert found.source_probs is not None
        return found.output, found.source_probs, (layers, index)

    def _input(self, x_BxLxD: jax.Array, positions: jax.Array | None, rng: jax.Array | None) -> jax.Array:
        """What a stack gets. positions: i32[B or 1, L]; None: 0, 1, .."""
        positions = jnp.arange(x_BxLxD.shape[1])[None] if positions is None else positions
        at = sinusoid(positions, x_BxLxD.shape[-1]).astype(x_BxLxD.dtype)
        return dropout(x_BxLxD + jnp.broadcast_to(at, x_BxLxD.shape), self._input_dropout, rng)
