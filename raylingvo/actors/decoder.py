"""The Decoder: writes a model's outputs on one dataset, and scores them. A plain class."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from raylingvo.actors.reader import Feed, SnapshotReader
from raylingvo.actors.watched import check_watched, evaluated_names
from raylingvo.data.pipeline import read_ahead
from raylingvo.experiment import Experiment, Reading
from raylingvo.metrics.means import WeightedMeans
from raylingvo.models.pictures import FirstRows
from raylingvo.models.task import Task
from raylingvo.monitor.atomic import write_atomically
from raylingvo.training.state import Model, Weights

# As `postprocess` gives it: a key, and what is written beside it.
_Output = tuple[str, dict[str, Any]]


class Decoder(SnapshotReader):
    """Decodes every example of a dataset to `decoder_out-<step>.jsonl`: a line `{"id": key, ...}` each.

    The lines are in the order of the dataset if every batch says which examples its rows are (field `id`, and
    `source_id` of several datasets), as those of buckets do. Without these fields, and if a row has more than one
    output (packed ones), they are in the order of the batches.

    Metrics are the weighted means of what `postprocess` gives, and the task's `corpus_scores` of all outputs, whose
    signatures are written to `signatures.json`. If the task draws pictures, then of the first examples, in the same
    order.
    """

    kind = "decode"

    def __init__(self, experiment: Experiment, dataset: str, logdir: Path):
        super().__init__(experiment, dataset, logdir)
        self.signatures: dict[str, str] = {}  # by metric, of the last scores
        self._first = FirstRows(0)  # of the last decoding

    def follow(self, feed: Feed) -> None:
        """Works on what `feed` gives until it ends.

        Raises RequestError at once if the experiment goes by a metric of this dataset that neither this role reports
        nor, if there is one, its Evaler. (Here, because checkpoints of a run that is over are decoded without.)
        """
        reported = [self._metric_names]
        if self.dataset in self._experiment.eval:
            reported.insert(0, lambda: evaluated_names(self._task, self._model, self._batches.samples()))
        check_watched(self._experiment, self.dataset, *reported)
        super().follow(feed)

    def _begin(self, task: Task) -> None:
        super()._begin(task)
        self._drawn = task.pictures()
        self._arrays = jax.jit(lambda weights, inputs: self._compute_pictures(weights, inputs))

    def _settings(self, experiment: Experiment) -> Reading:
        return experiment.decode[self.dataset]

    def _compute(self, weights: Weights, batch: Any) -> Any:
        return self._task.decode(self._model.merge(weights), batch)

    def _compute_pictures(self, weights: Weights, inputs: Any) -> Any:
        assert self._drawn is not None
        return self._drawn.arrays(self._model.merge(weights), inputs)

    def _pictures(self, weights: Weights) -> Mapping[str, bytes]:
        if self._drawn is None or not self._first.rows:
            return {}
        arrays = self._arrays(weights, self._drawn.inputs(self._first.rows))
        return self._drawn.draw(jax.device_get(arrays), self._first.rows)

    def _metric_names(self) -> list[str]:
        """What a first decoding will report. Only outputs tell: some are made, with untrained weights."""
        # One batch of each kind, as they come, the shortest first; those of other shapes have the same metrics.
        kinds: dict[tuple[str, ...], Any] = {}
        for batch in self._batches.samples():
            kinds.setdefault(tuple(sorted(batch)), batch)
        weights = jax.jit(lambda: Model.split(self._task.init(nnx.Rngs(0))))()
        names: list[str] = []
        outputs: list[dict[str, Any]] = []
        for batch in kinds.values():
            found, metrics = self._task.postprocess(jax.device_get(self._step(weights, batch)), batch)
            outputs.extend(output for _, output in found)
            names.extend(metrics)
        return [*names, *self._task.corpus_scores(outputs).metrics]

    def _run(self, step: int, weights: Weights) -> tuple[dict[str, float], int]:
        means, outputs, numbers = WeightedMeans(), [], []
        numbered = True
        self._first = FirstRows(self._drawn.num_examples if self._drawn else 0)
        for batch in read_ahead(self._batches):
            decoded = jax.device_get(self._step(weights, batch))
            found, metrics = self._task.postprocess(decoded, batch)
            means.add(metrics)
            outputs.extend(found)
            of_rows = _numbers(batch)
            self._first.add(decoded, batch, of_rows)
            numbers.extend(of_rows)
            numbered = numbered and len(numbers) == len(outputs)
        if numbered:
            outputs = [output for _, output in sorted(zip(numbers, outputs, strict=True), key=operator.itemgetter(0))]
        lines = ({"id": key, **output} for key, output in outputs)
        text = "".join(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n" for line in lines)
        write_atomically(self.directory / f"decoder_out-{step:08d}.jsonl", text)
        scores = self._task.corpus_scores([output for _, output in outputs])
        self.signatures = dict(scores.signatures)
        if self.signatures:
            write_atomically(self.directory / "signatures.json", json.dumps(self.signatures, indent=2) + "\n")
        return {**means.result(), **scores.metrics}, len(outputs)


def _numbers(batch: Mapping[str, np.ndarray]) -> list[tuple[Any, ...]]:
    """What orders the real rows of a batch, one for each; none if it does not say which examples they are."""
    if "id" not in batch:
        return []
    real = batch["weight"] > 0
    # Several datasets one after the other may each count from 0.
    return list(zip(*(batch[name][real].tolist() for name in ("source_id", "id") if name in batch), strict=True))
