"""RNMT+, the recurrent network of machine translation (Chen et al. 2018; Lingvo: SetupRNMTParams)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from raylingvo.models.layers.attention_rnn import AttentionRNN, AttentionRNNState
from raylingvo.models.layers.dropout import dropout, split
from raylingvo.models.layers.embedding import Embedding
from raylingvo.models.layers.initializers import uniform
from raylingvo.models.layers.lstm import LSTMCell, LSTMConfig, LSTMState
from raylingvo.models.layers.multi_headed_source_attention import (
    MultiHeadedSourceAttention,
    MultiHeadedSourceAttentionConfig,
)
from raylingvo.models.layers.projection import Projection
from raylingvo.models.layers.rnn import RNN, StackedBidirectionalRNN
from raylingvo.models.layers.softmax import Softmax
from raylingvo.models.layers.source_attention import Source
from raylingvo.models.mt.model import Predicted, TranslationModel
from raylingvo.models.task import Batch

# B pairs, S source positions, T target positions, D features of embeddings and contexts, H of LSTMs; N slots of a
# search.


@dataclasses.dataclass(frozen=True, kw_only=True)
class RnmtModel(TranslationModel):
    """Encoder and decoder of layer-normalised LSTMs. The defaults are those of `mt.wmt14_en_de.WmtEnDeRNMT`.

    model_dim: D, of embeddings, of the encoder's output and of the attention's contexts. hidden_dim: H, of an LSTM; the
      encoder has one for each direction.
    num_heads: of additive attention, whose keys and values are one projection of the source. Its weights behind the
      projections are shared by the heads.
    residual_start: the first layer, from 0, of both stacks whose input is added to its output. The decoder's first
      layer never adds it.
    dropout: of embeddings, and of the output of each layer but the decoder's first. attention_dropout: of attention's
      probabilities.
    init_scale: embeddings, LSTMs and the softmax are drawn from U(-s, s); biases are 0, and what projects the encoder's
      output, and attention, have the initialisation of their layers.
    recompute: gradients compute the gates of LSTMs again, and so keep less memory.
    """

    model_dim: int = 1024
    hidden_dim: int = 1024
    num_encoder_layers: int = 6
    num_decoder_layers: int = 8
    num_heads: int = 4
    residual_start: int = 2
    dropout: float = 0.3
    attention_dropout: float = 0.3
    init_scale: float = 0.04
    recompute: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hidden_dim", "num_encoder_layers", "num_decoder_layers", "num_heads", "residual_start"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")
        if self.model_dim < 1 or self.model_dim % self.num_heads:
            raise ValueError(f"model_dim must be > 0 and divisible by {self.num_heads} heads (got {self.model_dim})")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1) (got {getattr(self, name)})")
        if not self.init_scale > 0:
            raise ValueError(f"init_scale must be > 0 (got {self.init_scale})")

    def build(self, rngs: nnx.Rngs) -> RnmtModule:
        return RnmtModule(self, rngs)


class RnmtCache(NamedTuple):
    """What a step needs of those before: the state of each layer, an array of N slots each."""

    first: AttentionRNNState
    upper: tuple[LSTMState, ...]


class RnmtModule(nnx.Module):
    """The network: `source_embedding` f32[V, D], `encoder`, `encoder_projection` f32[2 H, D], `target_embedding`,
    `decoder_first` with the attention, `decoder_upper`, `softmax` f32[V, H + D].
    """

    def __init__(self, config: RnmtModel, rngs: nnx.Rngs) -> None:
        dim, hidden, dtype = config.model_dim, config.hidden_dim, jnp.dtype(config.compute_dtype)
        init = uniform(config.init_scale)

        def cell(in_features: int) -> LSTMCell:
            cell_config = LSTMConfig(
                in_features=in_features, out_features=hidden, layer_norm=True, output_nonlinearity=False
            )
            return LSTMCell(cell_config, kernel_init=init, dtype=dtype, rngs=rngs)

        def embedding(vocab_size: int) -> Embedding:
            return Embedding(vocab_size, dim, table_init=init, dtype=dtype, rngs=rngs)

        self.source_embedding = embedding(config.source_vocab_size)
        self.encoder = StackedBidirectionalRNN(
            config.num_encoder_layers,
            dim,
            lambda layer, in_features: cell(in_features),
            dropout_rate=config.dropout,
            residual_start=config.residual_start,
            recompute=config.recompute,
        )
        # Lingvo has none where D = 2 H.
        self.encoder_projection = Projection(2 * hidden, dim, dtype=dtype, rngs=rngs)
        self.target_embedding = embedding(config.target_vocab_size)
        attention = MultiHeadedSourceAttentionConfig(
            source_features=dim,
            query_features=hidden,
            context_features=dim,
            hidden_features=dim,
            num_heads=config.num_heads,
            kind="additive",
            attend_to_keys=True,
            dropout_rate=config.attention_dropout,
        )
        self.decoder_first = AttentionRNN(
            cell(2 * dim),
            MultiHeadedSourceAttention(attention, dtype=dtype, rngs=rngs),
            recompute=config.recompute,
        )
        upper = range(1, config.num_decoder_layers)
        self.decoder_upper = nnx.List([RNN(cell(hidden + dim), recompute=config.recompute) for _ in upper])
        self.softmax = Softmax(hidden + dim, config.target_vocab_size, kernel_init=init, dtype=dtype, rngs=rngs)
        self._dropout, self._residual_start = config.dropout, config.residual_start

    def __call__(self, batch: Batch, *, rng: jax.Array | None = None) -> Predicted:
        """As `TranslationModule`. features: [B, T, H + D], of the last layer's output and the context."""
        encoder_rng, input_rng, first_rng, *upper_rngs = split(rng, 3 + len(self.decoder_upper))
        source = self._encode(batch, encoder_rng)
        segment_ids_BxT = batch.get("tgt_segment_ids")
        x_BxTxD = dropout(self.target_embedding(batch["tgt_ids"]), self._dropout, input_rng)
        # Paddings of targets are not looked at: they come last, and reach nothing that counts.
        first = self.decoder_first(x_BxTxD, source, segment_ids_BxT=segment_ids_BxT, rng=first_rng)
        x_BxTxH = first.output
        # Contexts depend on the first layer alone: the others have those of all positions at once.
        for i, (layer, key) in enumerate(zip(self.decoder_upper, upper_rngs, strict=True), start=1):
            y_BxTxH, _ = layer(_joined(x_BxTxH, first.context), segment_ids_BxT=segment_ids_BxT)
            x_BxTxH = self._residual(i, x_BxTxH, dropout(y_BxTxH, self._dropout, key))
        return Predicted(_joined(x_BxTxH, first.context), first.probs)

    def encode(self, batch: Batch) -> Source:
        """As `TranslationModule`: keys, values and paddings."""
        return self._encode(batch, None)

    def init_cache(self, source: Source, num_hyps: int, max_steps: int) -> RnmtCache:
        """As `TranslationModule`. The cache does not grow with the steps."""
        del max_steps
        slots = source.keys.shape[0] * num_hyps
        upper = tuple(layer.cell.initial_state(slots) for layer in self.decoder_upper)
        return RnmtCache(self.decoder_first.initial_state(source, slots), upper)

    @property
    def cache_axes(self) -> int:
        """As `TranslationModule`."""
        return 0

    def step(self, ids_N: jax.Array, source: Source, cache: RnmtCache) -> tuple[jax.Array, jax.Array, RnmtCache]:
        """As `TranslationModule`."""
        first, probs_NxS = self.decoder_first.step(cache.first, self.target_embedding(ids_N), source)
        x_NxH, upper = first.lstm.m, []
        for i, (layer, state) in enumerate(zip(self.decoder_upper, cache.upper, strict=True), start=1):
            upper.append(layer.cell(state, _joined(x_NxH, first.context)))
            x_NxH = self._residual(i, x_NxH, upper[-1].m)
        return _joined(x_NxH, first.context), probs_NxS, RnmtCache(first, tuple(upper))

    def _encode(self, batch: Batch, rng: jax.Array | None) -> Source:
        input_rng, stack_rng = split(rng, 2)
        x_BxSxD = dropout(self.source_embedding(batch["src_ids"]), self._dropout, input_rng)
        segment_ids_BxS = batch.get("src_segment_ids")
        paddings_BxS = batch["src_paddings"] if segment_ids_BxS is None else None
        encoded_BxSxH = self.encoder(x_BxSxD, paddings_BxS, segment_ids_BxT=segment_ids_BxS, rng=stack_rng)
        encoded_BxSxD = self.encoder_projection(encoded_BxSxH)
        return self.decoder_first.attention.prepare(encoded_BxSxD, encoded_BxSxD, paddings_BxS, segment_ids_BxS)

    def _residual(self, layer: int, x: jax.Array, y: jax.Array) -> jax.Array:
        return x + y if layer >= self._residual_start else y


def _joined(x: jax.Array, context: jax.Array) -> jax.Array:
    """[..., H] and [..., D] as [..., H + D]."""
    return jnp.concatenate([x, context], axis=-1)
