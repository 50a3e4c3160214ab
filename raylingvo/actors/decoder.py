"""The Decoder: writes a model's outputs on one dataset, and scores them. A plain class."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from raylingvo.actors.reader import SnapshotReader
from raylingvo.data.pipeline import read_ahead
from raylingvo.experiment import Experiment, Reading
from raylingvo.metrics.means import WeightedMeans
from raylingvo.monitor.atomic import write_atomically
from raylingvo.training.state import Weights


class Decoder(SnapshotReader):
    """Decodes every example of a dataset to `decoder_out-<step>.jsonl`: a line `{"id": key, ...}` each.

    The lines are in the order of the dataset if every batch says which examples its rows are (field `id`, and
    `source_id` of several datasets), as those of buckets do. Without these fields, and if a row has more than one
    output (packed ones), they are in the order of the batches.
    """

    kind = "decode"

    def _settings(self, experiment: Experiment) -> Reading:
        return experiment.decode[self.dataset]

    def _compute(self, weights: Weights, batch: Any) -> Any:
        return self._task.decode(self._model.merge(weights), batch)

    def _run(self, step: int, weights: Weights) -> tuple[dict[str, float], int]:
        means, lines, numbers = WeightedMeans(), [], []
        numbered = True
        for batch in read_ahead(self._batches):
            outputs, metrics = self._task.postprocess(jax.device_get(self._step(weights, batch)), batch)
            means.add(metrics)
            lines.extend(json.dumps({"id": key, **output}, allow_nan=False) for key, output in outputs)
            numbers.extend(_numbers(batch))
            numbered = numbered and len(numbers) == len(lines)
        if numbered:
            lines = [line for _, line in sorted(zip(numbers, lines, strict=True), key=operator.itemgetter(0))]
        write_atomically(self.directory / f"decoder_out-{step:08d}.jsonl", "".join(f"{line}\n" for line in lines))
        return means.result(), len(lines)


def _numbers(batch: Mapping[str, np.ndarray]) -> list[tuple[Any, ...]]:
    """What orders the real rows of a batch, one for each; none if it does not say which examples they are."""
    if "id" not in batch:
        return []
    real = batch["weight"] > 0
    # Several datasets one after the other may each count from 0.
    return list(zip(*(batch[name][real].tolist() for name in ("source_id", "id") if name in batch), strict=True))
