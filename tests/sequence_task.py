"""A task of a few weights on token sequences, padded or packed, and its data: batches of several shapes, for tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sequence_toy
import toy
from flax import nnx

from raylingvo.data.dataset import Dataset
from raylingvo.data.mixing import MixBatches
from raylingvo.data.sequence_dataset import SequenceDataset
from raylingvo.data.sequences import SequenceSource
from raylingvo.experiment import Experiment, Reading
from raylingvo.models.task import Task

# B rows, S source positions, T target positions, D features, V tokens.
V = 16


class Net(nnx.Module):
    """Scores of each label from the token before it and the mean of the source sequence."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(V, 8, rngs=rngs)
        self.out = nnx.Linear(8, V, rngs=rngs)
        self.dropout = nnx.Dropout(0.3)

    def __call__(self, batch: Any, *, rng: jax.Array | None = None) -> jax.Array:
        source_BxS, target_BxT = segments(batch, "src"), segments(batch, "tgt")
        same_BxTxS = (target_BxT[:, :, None] == source_BxS[:, None, :]) & (source_BxS > 0)[:, None, :]
        sum_BxTxD = jnp.einsum("bts,bsd->btd", same_BxTxS.astype(jnp.float32), self.embed(batch["src_ids"] % V))
        mean_BxTxD = sum_BxTxD / jnp.maximum(same_BxTxS.sum(axis=2, keepdims=True), 1)
        hidden_BxTxD = jnp.tanh(self.embed(batch["tgt_ids"] % V) + mean_BxTxD)
        return self.out(self.dropout(hidden_BxTxD, deterministic=rng is None, rngs=rng))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels(Task):
    """Cross-entropy of the labels, modulo V, of every target position. An output is the likeliest labels."""

    def init(self, rngs: nnx.Rngs) -> Net:
        return Net(rngs)

    def loss(self, model: Any, batch: Any, rng: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        metrics = _metrics(model(batch, rng=rng), batch)
        return metrics["loss"][0], metrics

    def eval_metrics(self, model: Any, batch: Any) -> dict[str, Any]:
        return _metrics(model(batch), batch)

    def decode(self, model: Any, batch: Any) -> jax.Array:
        return model(batch).argmax(axis=-1)

    def postprocess(self, decoded: np.ndarray, batch: Any) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, Any]]:
        outputs = []
        for row in np.flatnonzero(batch["weight"]):
            source_S, target_T = segments(batch, "src")[row], segments(batch, "tgt")[row]
            for segment in range(1, int(source_S.max()) + 1):
                number = (int(batch["src_ids"][row, source_S == segment][0]) - 1000) // 100  # as sequence_toy has it
                outputs.append((str(number), {"labels": decoded[row, target_T == segment].tolist()}))
        return outputs, {"num_outputs": (len(outputs), 1.0)}


def segments(batch: Any, column: str) -> Any:
    """Which sequence of its row each position is of, from 1; 0 is padding."""
    packed = batch.get(f"{column}_segment_ids")
    return (1 - batch[f"{column}_paddings"]).astype(np.int32) if packed is None else packed


def _metrics(logits_BxTxV: jax.Array, batch: Any) -> dict[str, Any]:
    counts_BxT = (segments(batch, "tgt") > 0) * batch["weight"][:, None]
    xent_BxT = optax.softmax_cross_entropy_with_integer_labels(logits_BxTxV, batch["tgt_labels"] % V)
    total = counts_BxT.sum()
    return {"loss": ((xent_BxT * counts_BxT).sum() / total, total), "num_tokens": (total, 1.0)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(SequenceDataset):
    """`number` pairs of sequences of at most 13 and 7 tokens, numbered from `first` on."""

    number: int = 30
    first: int = 0

    def open(self) -> SequenceSource:
        return sequence_toy.Sequences([(i * 5 % 13 + 1, i % 7 + 1) for i in range(self.number)], self.first)


# Two shapes, and with different batch sizes; one shape; and all three in turns.
BUCKETED = Pairs(bucket_bounds=(6, 12), bucket_batch_sizes=(6, 3))
PACKED = Pairs(packed_lengths=(12, 14))
MIXED = MixBatches(datasets=(BUCKETED, dataclasses.replace(PACKED, first=100)), weights=(2, 1))


def experiment(*, data: Dataset, reading: Reading | None = None, **train: Any) -> Experiment:
    """An experiment that trains on these data, and reads them; the rest as `toy.experiment`."""
    base = toy.experiment(task=Labels(), data=data, reading=reading, **train)
    return dataclasses.replace(base, name="toy.Labels", datasets={"train": data, "test": data})
