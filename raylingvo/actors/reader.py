"""What Evalers and Decoders share: a compiled step that is fed with the weights of one snapshot after another."""

from __future__ import annotations

import abc
import gc
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np

from raylingvo import config
from raylingvo.config import FrozenDict
from raylingvo.errors import RequestError
from raylingvo.experiment import Experiment, Reading
from raylingvo.models.task import Task
from raylingvo.monitor.metrics_log import MetricsLog
from raylingvo.monitor.scores import write_score
from raylingvo.training.host_copy import decode
from raylingvo.training.shapes import StepForShapes
from raylingvo.training.state import Model, Weights

Kind = Literal["eval", "decode"]


class Arrival(NamedTuple):
    """A snapshot as a reader gets it."""

    step: int
    time: float  # Unix seconds at the end of the step
    weights: Sequence[np.ndarray]  # encoded leaves, read-only views of the object store
    settings: Mapping[str, Any] = FrozenDict()  # keys of the experiment that the run has changed by then -> values


class Feed(Protocol):
    """What a reader needs of the SnapshotStore."""

    def next(self) -> Arrival | None:
        """Waits for the snapshot to work on; None when there will be none any more."""
        ...

    def done(self, step: int, metrics: dict[str, float]) -> None:
        """The snapshot of `step` has been worked on, and its metrics are on disk."""
        ...


class SnapshotReader(abc.ABC):
    """Works on snapshots of an experiment with one dataset, and records metrics in `LOGDIR/<kind>_<dataset>`.

    The step is compiled once for each shape of batch, all of them before the first snapshot comes; and again when a
    snapshot comes of a run that has changed its task, to be worked on as that is now.
    """

    kind: Kind

    def __init__(self, experiment: Experiment, dataset: str, logdir: Path):
        self.dataset = dataset
        self.directory = logdir / f"{self.kind}_{dataset}"
        self._experiment = experiment
        self._reading = self._settings(experiment)
        batch_size = experiment.reading_batch_size(self._reading)
        self._batches = experiment.datasets[dataset].eval_batches(batch_size, self._reading.max_examples)
        if not len(self._batches):
            raise RequestError(f"dataset {dataset}: there is no example to read")
        self._log = MetricsLog(self.directory)
        self._begin(experiment.task)

    @property
    def abstract_weights(self) -> Weights:
        """The shapes of the weights, in the structure of `Arrival.weights`."""
        return self._model.abstract

    def follow(self, feed: Feed) -> None:
        """Works on what `feed` gives until it ends."""
        while (arrival := feed.next()) is not None:
            self.work_on(self._task_of(arrival))
            step, metrics = arrival.step, self.process(arrival)
            # Otherwise its memory in the object store would be held while `feed` waits for the next one. JAX gives up
            # memory that it aliases when a collection begins, of whichever generation (0.10.2, _xla_gc_callback).
            del arrival
            gc.collect(0)
            feed.done(step, metrics)

    def work_on(self, task: Task) -> None:
        """What follows is of this task, whose model has the same variables; compiles if it is another one."""
        if task != self._task:
            self._begin(task)

    def process(self, arrival: Arrival) -> dict[str, float]:
        """Computes and records the metrics of a snapshot of the task that is worked on.

        Besides the task's metrics: `handover_seconds` from the end of the step to its weights on this device,
        `lag_seconds` from the end of the step to these metrics, and `examples_per_second`.
        """
        # On a CPU device_put aliases the object store's memory: nothing is copied.
        weights = jax.device_put(decode(arrival.weights, self._model.abstract), may_alias=True)
        jax.block_until_ready(weights)
        start = time.time()
        metrics, num_examples = self._run(arrival.step, weights)
        end = time.time()
        metrics |= {
            "examples_per_second": num_examples / (end - start),
            "handover_seconds": start - arrival.time,
            "lag_seconds": end - arrival.time,
            **self._batches.facts,
        }
        write_score(self.directory, arrival.step, metrics)
        self._log.write(arrival.step, metrics)
        self._log.write_pictures(arrival.step, self._pictures(weights))
        return metrics

    def close(self) -> None:
        self._log.close()

    def _begin(self, task: Task) -> None:
        self._task = task
        self._model = Model(task)
        # A function of its own: `self._compute` is the same to JAX as before, which would not trace it again.
        self._step = StepForShapes(lambda weights, batch: self._compute(weights, batch))
        self._step.compile(self._model.abstract, self._batches.samples())

    def _task_of(self, arrival: Arrival) -> Task:
        changed = arrival.settings
        return (config.override(self._experiment, changed) if changed else self._experiment).task

    def _pictures(self, weights: Weights) -> Mapping[str, bytes]:
        """PNG files of what the last `_run` went through, by name; there need not be any.

        When they are made the metrics are on disk, which a failure to make them does not take away.
        """
        del weights
        return {}

    @abc.abstractmethod
    def _settings(self, experiment: Experiment) -> Reading:
        """This reader's part of the experiment."""

    @abc.abstractmethod
    def _compute(self, weights: Weights, batch: Any) -> Any:
        """The device's part, for one batch: traced by jit."""

    @abc.abstractmethod
    def _run(self, step: int, weights: Weights) -> tuple[dict[str, float], int]:
        """Goes through the dataset: (metrics, number of examples)."""
