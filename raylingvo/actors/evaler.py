"""The Evaler: scores snapshots on one dataset. A plain class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from raylingvo.actors.reader import SnapshotReader
from raylingvo.actors.watched import check_watched, evaluated_names
from raylingvo.data.pipeline import read_ahead
from raylingvo.experiment import Experiment, Reading
from raylingvo.metrics.means import WeightedMeans
from raylingvo.training.state import Weights


class Evaler(SnapshotReader):
    """Weighted means of the task's metrics over every example of a dataset, exactly once each."""

    kind = "eval"

    def __init__(self, experiment: Experiment, dataset: str, logdir: Path):
        """Raises RequestError if the experiment goes by a metric of this dataset that the task does not give."""
        super().__init__(experiment, dataset, logdir)
        if dataset not in experiment.decode:  # else the Decoder checks it, who knows what both of them report
            samples = self._batches.samples
            check_watched(experiment, dataset, lambda: evaluated_names(self._task, self._model, samples()))

    def _settings(self, experiment: Experiment) -> Reading:
        return experiment.eval[self.dataset]

    def _compute(self, weights: Weights, batch: Any) -> Any:
        return self._task.eval_metrics(self._model.merge(weights), batch)

    def _run(self, step: int, weights: Weights) -> tuple[dict[str, float], int]:
        means, num_examples = WeightedMeans(), 0
        for batch in read_ahead(self._batches):
            means.add(jax.device_get(self._step(weights, batch)))
            num_examples += int(batch["weight"].sum())
        return means.result(), num_examples
