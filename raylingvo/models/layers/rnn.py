"""Recurrent layers over batches of sequences: one direction, both, and stacks of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from raylingvo.models.layers import dropout
from raylingvo.models.layers._recurrence import Loop, recur
from raylingvo.models.layers.lstm import Dot, Frame, LSTMCell, LSTMConfig, LSTMState, lstm_step

# B sequences of T frames, D input features, M output features.


class RNN(nnx.Module):
    """An LSTM cell over the frames of sequences, under `lax.scan`. The input's part of all gates is one product.

    cell: is used for each frame.
    reverse: from the last frame to the first.
    recompute: the gradient computes each frame again, and so keeps the states and not the gates.
    Source: Lingvo core/rnn_layers.py, FRNN; core/recurrent.py.
    """

    def __init__(self, cell: LSTMCell, *, reverse: bool = False, recompute: bool = False) -> None:
        self.cell, self.reverse, self.recompute = cell, reverse, recompute

    def __call__(
        self,
        x_BxTxD: jax.Array,
        paddings_BxT: jax.Array | None = None,
        *,
        segment_ids_BxT: jax.Array | None = None,
        initial_state: LSTMState | None = None,
        rng: jax.Array | None = None,
    ) -> tuple[jax.Array, LSTMState]:
        """The outputs [B, T, M], in the dtype of the cell, and the state after the last frame.

        A padded frame leaves the state as it is, and its output is that of the frame before (of the initial state, if
        there is none).

        paddings_BxT: 1.0 = padded.
        segment_ids_BxT: i32, of packed sequences: the state is 0 where a segment starts, except the first. 0 = padded.
        initial_state: zeros if None. (Lingvo resets it in packed input.)
        rng: a key in training, for zoneout.
        """
        gates_x = self.cell.project_inputs(x_BxTxD.swapaxes(0, 1))
        state = self.cell.initial_state(x_BxTxD.shape[0]) if initial_state is None else initial_state
        frames = Frame(
            padding=_padding(paddings_BxT, segment_ids_BxT),
            reset=None if segment_ids_BxT is None else segment_starts(segment_ids_BxT, reverse=self.reverse),
            rng=jax.random.split(rng, x_BxTxD.shape[1]) if rng is not None and self.cell.config.zoneout else None,
        )
        loop = Loop(functools.partial(_step, self.cell.config), self.reverse, self.recompute)
        added = {"recurrent": gates_x}
        m_TxBxM, last = recur(loop, self.cell.matrices(), self.cell.vectors(), added, state, frames)
        return m_TxBxM.swapaxes(0, 1), last


class BidirectionalRNN(nnx.Module):
    """A cell from left to right, one from right to left, and their outputs side by side: [B, T, M + M'].

    Source: Lingvo core/rnn_layers.py, BidirectionalFRNN.
    """

    def __init__(self, forward: LSTMCell, backward: LSTMCell, *, recompute: bool = False) -> None:
        self.forward = RNN(forward, recompute=recompute)
        self.backward = RNN(backward, reverse=True, recompute=recompute)

    def __call__(
        self,
        x_BxTxD: jax.Array,
        paddings_BxT: jax.Array | None = None,
        *,
        segment_ids_BxT: jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """As `RNN`, from states of 0. At a padded frame, either half is that of the frame before in its direction."""
        rngs = dropout.split(rng, 2)
        halves = [
            rnn(x_BxTxD, paddings_BxT, segment_ids_BxT=segment_ids_BxT, rng=key)[0]
            for rnn, key in zip((self.forward, self.backward), rngs, strict=True)
        ]
        return jnp.concatenate(halves, axis=-1)


class StackedRNN(nnx.Module):
    """Layers one on the other: dropout follows each, and, from layer `residual_start` on, its input is added.

    make_cell: (number of the layer) -> its cell.
    dropout_rate: of the output of each layer, in training.
    residual_start: Lingvo's skip_start; None: there are no residual connections. Input and output of the layers from
      it on must have as many features.
    Raises ValueError if a residual connection joins different numbers of features.
    Source: Lingvo core/rnn_layers.py, StackedFRNNLayerByLayer.
    """

    def __init__(
        self,
        num_layers: int,
        make_cell: Callable[[int], LSTMCell],
        *,
        dropout_rate: float = 0.0,
        residual_start: int | None = 1,
        recompute: bool = False,
    ) -> None:
        self.layers = nnx.List([RNN(make_cell(i), recompute=recompute) for i in range(num_layers)])
        self.dropout_rate, self.residual_start = dropout_rate, residual_start
        widths = [(layer.cell.config.in_features, layer.cell.config.out_features) for layer in self.layers]
        _check_residual(widths, residual_start)

    def __call__(
        self,
        x_BxTxD: jax.Array,
        paddings_BxT: jax.Array | None = None,
        *,
        segment_ids_BxT: jax.Array | None = None,
        initial_states: Sequence[LSTMState] | None = None,
        rng: jax.Array | None = None,
    ) -> tuple[jax.Array, list[LSTMState]]:
        """The outputs [B, T, M] of the last layer and the last state of each layer. Arguments as those of `RNN`."""
        states: Sequence[LSTMState | None] = initial_states or [None] * len(self.layers)
        last, keys = [], dropout.split(rng, 2 * len(self.layers))
        for i, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            y_BxTxM, final = layer(
                x_BxTxD, paddings_BxT, segment_ids_BxT=segment_ids_BxT, initial_state=state, rng=keys[2 * i]
            )
            x_BxTxD = _add(
                x_BxTxD, dropout.dropout(y_BxTxM, self.dropout_rate, keys[2 * i + 1]), i, self.residual_start
            )
            last.append(final)
        return x_BxTxD, last


class StackedBidirectionalRNN(nnx.Module):
    """As `StackedRNN`, of bidirectional layers: the encoder of RNMT+, for one (Lingvo: StackedBiFRNNLayerByLayer).

    make_cell: (number of the layer, its input features) -> a cell; called twice for each layer.
    in_features: of the first layer; those of the others follow.
    """

    def __init__(
        self,
        num_layers: int,
        in_features: int,
        make_cell: Callable[[int, int], LSTMCell],
        *,
        dropout_rate: float = 0.0,
        residual_start: int | None = 1,
        recompute: bool = False,
    ) -> None:
        layers, widths = [], []
        for i in range(num_layers):
            cells = make_cell(i, in_features), make_cell(i, in_features)
            widths.append((in_features, sum(cell.config.out_features for cell in cells)))
            layers.append(BidirectionalRNN(*cells, recompute=recompute))
            in_features = widths[-1][1]
        _check_residual(widths, residual_start)
        self.layers = nnx.List(layers)
        self.dropout_rate, self.residual_start = dropout_rate, residual_start

    def __call__(
        self,
        x_BxTxD: jax.Array,
        paddings_BxT: jax.Array | None = None,
        *,
        segment_ids_BxT: jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """The outputs [B, T, 2 * M] of the last layer. Arguments as those of `BidirectionalRNN`."""
        keys = dropout.split(rng, 2 * len(self.layers))
        for i, layer in enumerate(self.layers):
            y_BxTxM = layer(x_BxTxD, paddings_BxT, segment_ids_BxT=segment_ids_BxT, rng=keys[2 * i])
            x_BxTxD = _add(
                x_BxTxD, dropout.dropout(y_BxTxM, self.dropout_rate, keys[2 * i + 1]), i, self.residual_start
            )
        return x_BxTxD


def _step(
    config: LSTMConfig,
    dot: Dot,
    vectors: Mapping[str, jax.Array],
    state: LSTMState,
    added: Mapping[str, jax.Array],
    frame: Frame,
) -> tuple[LSTMState, jax.Array]:
    state = lstm_step(config, dot, vectors, state, added["recurrent"], frame)
    return state, state.m


def _padding(paddings_BxT: jax.Array | None, segment_ids_BxT: jax.Array | None) -> jax.Array | None:
    """[T, B], 1.0 where either says so."""
    padded = [] if paddings_BxT is None else [paddings_BxT]
    if segment_ids_BxT is not None:
        padded.append((segment_ids_BxT == 0).astype(jnp.float32))
    return None if not padded else jnp.maximum(padded[0], padded[-1]).swapaxes(0, 1)


def segment_starts(segment_ids_BxT: jax.Array, *, reverse: bool = False) -> jax.Array:
    """bool[T, B]: the frame is of another segment than the last frame before it, in this direction, that is of one."""
    ids_TxB = segment_ids_BxT.swapaxes(0, 1)
    ids_TxB = ids_TxB[::-1] if reverse else ids_TxB
    index_TxB = jnp.where(ids_TxB > 0, jnp.arange(len(ids_TxB))[:, None], -1)
    latest_TxB = jax.lax.cummax(index_TxB, axis=0)
    before_TxB = jnp.concatenate([jnp.full_like(latest_TxB[:1], -1), latest_TxB[:-1]])
    previous_TxB = jnp.take_along_axis(ids_TxB, jnp.maximum(before_TxB, 0), axis=0)
    starts_TxB = (ids_TxB > 0) & (before_TxB >= 0) & (ids_TxB != previous_TxB)
    return starts_TxB[::-1] if reverse else starts_TxB


def _add(x: jax.Array, y: jax.Array, layer: int, residual_start: int | None) -> jax.Array:
    return y if residual_start is None or layer < residual_start else x.astype(y.dtype) + y


def _check_residual(widths: Sequence[tuple[int, int]], residual_start: int | None) -> None:
    for i, (d, m) in enumerate(widths):
        if residual_start is not None and i >= residual_start and d != m:
            raise ValueError(
                f"residual_start must be None, or layers from it on must keep the number of features "
                f"(got {residual_start}; layer {i} has {d} in and {m} out)"
            )
