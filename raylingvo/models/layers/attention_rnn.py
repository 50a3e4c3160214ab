"""A recurrent layer that attends to a source in each frame: the first of the decoder of RNMT+."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from raylingvo.models.layers._recurrence import Loop, recur
from raylingvo.models.layers.lstm import Dot, Frame, LSTMCell, LSTMConfig, LSTMState, lstm_step
from raylingvo.models.layers.multi_headed_source_attention import MultiHeadedSourceAttention
from raylingvo.models.layers.rnn import segment_starts
from raylingvo.models.layers.source_attention import Source

# B targets of T frames with D features, and their sources of S positions; C context features, M output features; N
# slots of a search, of source i % B each.


class AttentionRNNState(NamedTuple):
    """What goes from frame to frame."""

    lstm: LSTMState
    context: jax.Array  # [B or N, C], which the frame before asked for


class Attended(NamedTuple):
    """What the layer gives for all frames."""

    output: jax.Array  # [B, T, M]
    context: jax.Array  # [B, T, C], which this output asked for
    probs: jax.Array  # f32[B, T, S], of the source's positions


class AttentionRNN(nnx.Module):
    """An LSTM over the frames of targets. Its input is a frame with the context of the frame before; its output asks an
    attention over the source for the next context.

    cell: of D + C input features. attention: of M query features. The first context is that of a query of zeros.
    recompute: the gradient computes the gates of each frame again; what attention computes it always does.
    Source: Lingvo core/rnn_layers.py, FRNNWithAttention. Differs in that each segment of a packed target starts with
    the first context of its own source.
    """

    def __init__(self, cell: LSTMCell, attention: MultiHeadedSourceAttention, *, recompute: bool = False) -> None:
        self.cell, self.attention, self.recompute = cell, attention, recompute

    def initial_state(self, source: Source, num_slots: int) -> AttentionRNNState:
        """The state before the first frame, of N slots."""
        sources = source.keys.shape[0]
        context_BxC, _ = self.attention(source, self._no_query(sources))
        context_NxC = jnp.tile(context_BxC, (num_slots // sources, 1))
        return AttentionRNNState(self.cell.initial_state(num_slots), context_NxC)

    def step(self, state: AttentionRNNState, x_NxD: jax.Array, source: Source) -> tuple[AttentionRNNState, jax.Array]:
        """The state after one more frame, and its probabilities f32[N, S]. Not in training."""
        lstm = self.cell(state.lstm, jnp.concatenate([x_NxD.astype(self.cell.dtype), state.context], axis=-1))
        context_NxC, probs_NxS = self.attention(source, lstm.m)
        return AttentionRNNState(lstm, context_NxC), probs_NxS

    def __call__(
        self,
        x_BxTxD: jax.Array,
        source: Source,
        *,
        segment_ids_BxT: jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> Attended:
        """All frames, from a state of zeros. What is padded must come last: the state goes on there.

        segment_ids_BxT: i32, if the source is packed: where a segment starts, state and context are the first.
        rng: a key in training, for the attention's dropout and zoneout.
        """
        batch, frames, features = x_BxTxD.shape
        first_rng, *frame_rngs = [None] * 3 if rng is None else jax.random.split(rng, 3)
        rngs = [None if key is None else jax.random.split(key, frames) for key in frame_rngs]
        ids_TxB = None if segment_ids_BxT is None else segment_ids_BxT.swapaxes(0, 1)
        context, _ = self.attention(
            source,
            self._no_query(batch),
            segment_ids_Q=None if ids_TxB is None else ids_TxB.reshape(-1),
            rng=first_rng,
        )
        context_RxBxC = context.reshape(-1, batch, context.shape[-1])
        added = {"recurrent": self.cell.project_inputs(x_BxTxD.swapaxes(0, 1))}
        reset_TxB = None
        if segment_ids_BxT is not None:
            added["first_context"], reset_TxB = context_RxBxC, segment_starts(segment_ids_BxT)
        found, _ = recur(
            Loop(functools.partial(_step, self.cell.config, nnx.graphdef(self.attention)), False, self.recompute),
            self.cell.matrices(projected=features),
            _Weights(self.cell.vectors(), nnx.state(self.attention), source),
            added,
            AttentionRNNState(self.cell.initial_state(batch), context_RxBxC[0]),
            _Frame(Frame(reset=reset_TxB, rng=rngs[1] if self.cell.config.zoneout else None), ids_TxB, rngs[0]),
        )
        return Attended(*(y.swapaxes(0, 1) for y in found))

    def _no_query(self, sources: int) -> jax.Array:
        return jnp.zeros((sources, self.cell.config.out_features), self.cell.dtype)


class _Weights(NamedTuple):
    """What all frames have in common."""

    vectors: dict[str, jax.Array]  # of the cell
    attention: nnx.State
    source: Source


class _Frame(NamedTuple):
    """What there is to know about a frame beforehand; None: nothing of the kind."""

    lstm: Frame
    segment_ids: jax.Array | None  # i32[B]
    rng: jax.Array | None  # for the attention


def _step(
    config: LSTMConfig,
    definition: nnx.GraphDef[MultiHeadedSourceAttention],
    dot: Dot,
    weights: _Weights,
    state: AttentionRNNState,
    added: Mapping[str, jax.Array],
    frame: _Frame,
) -> tuple[AttentionRNNState, Attended]:
    before_BxC = state.context
    if frame.lstm.reset is not None:
        before_BxC = jnp.where(frame.lstm.reset[:, None], added["first_context"], before_BxC)

    def dot_with_context(name: str, x: jax.Array, addend: jax.Array) -> jax.Array:
        return dot(name, jnp.concatenate([before_BxC, x], axis=-1) if name == "recurrent" else x, addend)

    lstm = lstm_step(config, dot_with_context, weights.vectors, state.lstm, added["recurrent"], frame.lstm)
    attention = nnx.merge(definition, weights.attention)
    context_BxC, probs_BxS = attention(weights.source, lstm.m, segment_ids_Q=frame.segment_ids, rng=frame.rng)
    return AttentionRNNState(lstm, context_BxC), Attended(lstm.m, context_BxC, probs_BxS)
