"""The Evaler: scores snapshots on one dataset. A plain class."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

from raylingvo.actors.reader import SnapshotReader
from raylingvo.data.pipeline import read_ahead
from raylingvo.errors import RequestError
from raylingvo.experiment import Experiment, Reading
from raylingvo.metrics.means import WeightedMeans
from raylingvo.training.state import Weights


class Evaler(SnapshotReader):
    """Weighted means of the task's metrics over every example of a dataset, exactly once each."""

    kind = "eval"

    def __init__(self, experiment: Experiment, dataset: str, logdir: Path):
        """Raises RequestError if the experiment goes by a metric of this dataset that the task does not give."""
        super().__init__(experiment, dataset, logdir)
        for field, metric in experiment.watched_metrics().items():
            of, _, name = metric.partition("/")
            if of == dataset:
                _check_name(field, metric, name, self._metric_names())

    def _metric_names(self) -> list[str]:
        """Of all batches: several tasks have different metrics."""
        found: dict[str, Any] = {}
        for batch in self._batches.samples():
            found |= jax.eval_shape(self._compute, self._model.abstract, batch)
        return list(found)

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


def _check_name(field: str, metric: str, name: str, names: Collection[str]) -> None:
    if name not in names:
        closest = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(closest)}?" if closest else f"the task gives {', '.join(names)}"
        raise RequestError(f"{field}: the evaluation has no metric {name!r} (got {metric!r}); {hint}")
