"""The Decoder: writes a model's outputs on one dataset, and scores them. A plain class."""

from __future__ import annotations

import json
from typing import Any

import jax

from raylingvo.actors.reader import SnapshotReader
from raylingvo.data.pipeline import read_ahead
from raylingvo.experiment import Experiment, Reading
from raylingvo.metrics.means import WeightedMeans
from raylingvo.monitor.atomic import write_atomically
from raylingvo.training.state import Weights


class Decoder(SnapshotReader):
    """Decodes every example of a dataset, in order, to `decoder_out-<step>.jsonl`: a line `{"id": key, ...}` each."""

    kind = "decode"

    def _settings(self, experiment: Experiment) -> Reading:
        return experiment.decode[self.dataset]

    def _compute(self, weights: Weights, batch: Any) -> Any:
        return self._task.decode(self._model.merge(weights), batch)

    def _run(self, step: int, weights: Weights) -> tuple[dict[str, float], int]:
        means, lines = WeightedMeans(), []
        for batch in read_ahead(self._batches):
            outputs, metrics = self._task.postprocess(jax.device_get(self._step(weights, batch)), batch)
            means.add(metrics)
            lines.extend(json.dumps({"id": key, **output}, allow_nan=False) for key, output in outputs)
        write_atomically(self.directory / f"decoder_out-{step:08d}.jsonl", "".join(f"{line}\n" for line in lines))
        return means.result(), len(lines)
