"""A recurrent layer that attends to a source in each frame: the first of the decoder of RNMT+."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from raylingvo.models.layers.lstm import Frame, LSTMCell, LSTMState, lstm_step
from raylingvo.models.layers.multi_headed_source_attention import MultiHeadedSourceAttention
from raylingvo.models.layers.rnn import segment_starts
from raylingvo.models.layers.source_attention import Source
from raylingvo.ops.product import einsum

# B targets of T frames with D features, and their sources of S positions; C context features, M output features; N
# slots of a search, of source i % B each.

_GATES = "gates"  # the name that remat knows their product by


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
    Source: Lingvo core/rnn_layers.py, FRNNWithAttention. Differs in that each segment of a packed target starts with
    the first context of its own source.
    """

    def __init__(self, cell: LSTMCell, attention: MultiHeadedSourceAttention) -> None:
        self.cell, self.attention = cell, attention

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
        matrices, vectors = self.cell.matrices(projected=features), self.cell.vectors()

        def step(state: AttentionRNNState, frame: _Frame) -> tuple[AttentionRNNState, Attended]:
            before_BxC = state.context
            if frame.first_context is not None and frame.lstm.reset is not None:
                before_BxC = jnp.where(frame.lstm.reset[:, None], frame.first_context, before_BxC)

            def dot(name: str, x: jax.Array, addend: jax.Array) -> jax.Array:
                if name == "recurrent":
                    x = jnp.concatenate([before_BxC, x], axis=-1)
                return checkpoint_name(einsum("bi,io->bo", x, matrices[name]) + addend, _GATES)

            lstm = lstm_step(self.cell.config, dot, vectors, state.lstm, frame.gates, frame.lstm)
            context_BxC, probs_BxS = self.attention(source, lstm.m, segment_ids_Q=frame.segment_ids, rng=frame.rng)
            return AttentionRNNState(lstm, context_BxC), Attended(lstm.m, context_BxC, probs_BxS)

        # What additive attention computes is T times as large as the source: the gradient computes it again.
        policy = jax.checkpoint_policies.save_only_these_names(_GATES)
        state, found = jax.lax.scan(
            jax.checkpoint(step, prevent_cse=False, policy=policy),
            AttentionRNNState(self.cell.initial_state(batch), context_RxBxC[0]),
            _Frame(
                gates=self.cell.project_inputs(x_BxTxD.swapaxes(0, 1)),
                lstm=Frame(
                    reset=None if segment_ids_BxT is None else segment_starts(segment_ids_BxT),
                    rng=rngs[1] if self.cell.config.zoneout else None,
                ),
                first_context=None if segment_ids_BxT is None else context_RxBxC,
                segment_ids=ids_TxB,
                rng=rngs[0],
            ),
        )
        del state
        return Attended(*(y.swapaxes(0, 1) for y in found))

    def _no_query(self, sources: int) -> jax.Array:
        return jnp.zeros((sources, self.cell.config.out_features), self.cell.dtype)


class _Frame(NamedTuple):
    """What there is to know about a frame beforehand; None: nothing of the kind."""

    gates: jax.Array  # [B, G * H], the input's part
    lstm: Frame
    first_context: jax.Array | None  # [B, C], of its segment
    segment_ids: jax.Array | None  # i32[B]
    rng: jax.Array | None  # for the attention
