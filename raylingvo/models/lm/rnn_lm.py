"""A recurrent language model: embedding, LSTMs, softmax (Lingvo: tasks/lm/layers.py, RnnLm)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from raylingvo.models.layers.dropout import dropout, split
from raylingvo.models.layers.embedding import Embedding
from raylingvo.models.layers.gradient_norm import with_clipped_gradient
from raylingvo.models.layers.initializers import uniform
from raylingvo.models.layers.lstm import LSTMCell, LSTMConfig
from raylingvo.models.layers.rnn import StackedRNN
from raylingvo.models.layers.softmax import Softmax
from raylingvo.models.lm.language_model import NextTokenModel
from raylingvo.models.task import Batch

# B sentences, T tokens, D features.


@dataclasses.dataclass(frozen=True, kw_only=True)
class RnnLm(NextTokenModel):
    """Stacked LSTMs between an embedding of D features, scaled by sqrt(D), and a softmax.

    features: D, also of the output of each LSTM. hidden_features: of its state, if the output is projected to D; 0: the
    state has D features too. residual_start: the first layer whose input is added to its output; None: no layer.
    embedding_dropout, rnn_dropout: of the embeddings, and of the output of each LSTM.
    max_lstm_gradient_norm: the gradient of all LSTMs' weights together is scaled down to this L2 norm; 0: off.
    embedding_init, softmax_init: these weights are drawn from U(-s, s). classes_per_chunk: see `Softmax`.
    """

    features: int
    hidden_features: int = 0
    num_layers: int = 2
    residual_start: int | None = None
    embedding_dropout: float = 0.0
    rnn_dropout: float = 0.0
    max_lstm_gradient_norm: float = 0.0
    embedding_init: float
    softmax_init: float
    classes_per_chunk: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("features", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")
        for name in ("embedding_dropout", "rnn_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1) (got {getattr(self, name)})")
        for name in ("hidden_features", "max_lstm_gradient_norm", "embedding_init", "softmax_init"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0 (got {getattr(self, name)})")

    def build(self, rngs: nnx.Rngs) -> RnnLmModule:
        return RnnLmModule(self, rngs)


class RnnLmModule(nnx.Module):
    """The network. LSTM kernels are Xavier uniform, biases 0. Each sentence starts from a state of zeros."""

    def __init__(self, config: RnnLm, rngs: nnx.Rngs) -> None:
        dtype = jnp.dtype(config.compute_dtype)
        self.embedding = Embedding(
            config.vocab_size,
            config.features,
            scale_sqrt_depth=True,
            table_init=uniform(config.embedding_init),
            dtype=dtype,
            rngs=rngs,
        )
        cell = LSTMConfig(
            in_features=config.features, out_features=config.features, hidden_features=config.hidden_features
        )
        self.rnn = StackedRNN(
            config.num_layers,
            lambda layer: LSTMCell(cell, dtype=dtype, rngs=rngs),
            dropout_rate=config.rnn_dropout,
            residual_start=config.residual_start,
        )
        self.softmax = Softmax(
            config.features,
            config.vocab_size,
            kernel_init=uniform(config.softmax_init),
            classes_per_chunk=config.classes_per_chunk,
            dtype=dtype,
            rngs=rngs,
        )
        self._embedding_dropout = config.embedding_dropout
        self._max_lstm_gradient_norm = config.max_lstm_gradient_norm

    def __call__(self, batch: Batch, *, rng: jax.Array | None = None) -> jax.Array:
        """ids i32[B, T], paddings f32[B, T] or segment_ids i32[B, T] -> features [B, T, D]."""
        embedding_rng, rnn_rng = split(rng, 2)
        x_BxTxD = dropout(self.embedding(batch["ids"]), self._embedding_dropout, embedding_rng)
        limit = self._max_lstm_gradient_norm
        rnn = with_clipped_gradient(self.rnn, limit) if limit else self.rnn
        # The paddings are all at the end: what the state becomes there reaches no token that counts.
        return rnn(x_BxTxD, segment_ids_BxT=batch.get("segment_ids"), rng=rnn_rng)[0]
