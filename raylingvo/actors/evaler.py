"""The Evaler: scores snapshots on one dataset. A plain class."""

from __future__ import annotations

from typing import Any

import jax

from raylingvo.actors.reader import SnapshotReader
from raylingvo.experiment import Experiment, Reading
from raylingvo.metrics.means import WeightedMeans
from raylingvo.training.state import Weights


class Evaler(SnapshotReader):
    """Weighted means of the task's metrics over every example of a dataset, exactly once each."""

    kind = "eval"

    def _settings(self, experiment: Experiment) -> Reading:
        return experiment.eval[self.dataset]

    def _compute(self, weights: Weights, batch: Any) -> Any:
        return self._task.eval_metrics(self._model.merge(weights), batch)

    def _run(self, step: int, weights: Weights) -> tuple[dict[str, float], int]:
        means, num_examples = WeightedMeans(), 0
        for batch in self._batches():
            means.add(jax.device_get(self._step(weights, batch)))
            num_examples += int(batch["weight"].sum())
        return means.result(), num_examples
