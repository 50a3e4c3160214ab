"""A Ray of the tests' own, and runs in threads of a test, whose live view the test can wait on."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gates
import jax
import psutil
import toy

from raylingvo.experiment import Experiment, Reading, Snapshots
from raylingvo.monitor.live import Screen, View
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.training import checkpoints
from raylingvo.training.state import init_state

SECONDS = 300  # nothing here takes so long unless it hangs


@contextlib.contextmanager
def own_ray(num_cpus: int) -> Iterator[None]:
    """A Ray of its own, in which all actors start until the end."""
    import ray

    ray.init(address="local", num_cpus=num_cpus, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    try:
        yield
    finally:
        ray.shutdown()


def processes(parent: int | None = None, *, kind: str = "") -> list[psutil.Process]:
    """The actors of this class, or all of Ray's below a process (None: this one)."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if " ".join(process.cmdline()).startswith(f"ray::{kind}"):
                found.append(process)
    return found


class Events(Screen):
    """What a run or a sweep shows, as a test can wait on it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._changed = threading.Condition()

    def event(self, text: str) -> None:
        print(text)  # for who reads of a test that has failed
        with self._changed:
            self.events.append(text)
            self._changed.notify_all()

    def close(self) -> None:
        pass

    def wait_for_event(self, part: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: any(part in event for event in self.events), SECONDS), self.events


class Watcher(Events, View):
    """A view that a test can wait on."""

    def __init__(self) -> None:
        super().__init__()
        self.statuses: list[Any] = []

    def update(self, status: Any) -> None:
        with self._changed:
            self.statuses.append(status)
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[Any], Any]) -> None:
        """Until `condition` holds for the newest status."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.statuses and condition(self.statuses[-1]), SECONDS)


class Running:
    """A run in a thread."""

    def __init__(self, experiment: Experiment, logdir: Path) -> None:
        from raylingvo.actors.run import run

        self.view = Watcher()
        self._executor = ThreadPoolExecutor(1)
        self._future: Future[Any] = self._executor.submit(run, experiment, logdir, view=self.view)

    @property
    def ended(self) -> bool:
        return self._future.done()

    def result(self) -> dict[str, Any]:
        try:
            return self._future.result(SECONDS)
        except TimeoutError:
            raise AssertionError(f"still running: {self.view.events}, {self.view.statuses[-1:]}") from None


def gated(experiment: Experiment, dataset: str, gate: gates.Gate, at_call: int = 0) -> Experiment:
    data = gates.GatedNumbers(
        size=experiment.datasets[dataset].size,
        gate=str(gate.folder),
        at_call=at_call,  # type: ignore[attr-defined]
    )
    return dataclasses.replace(experiment, datasets={**experiment.datasets, dataset: data})


def only_eval(policy: str, **train: Any) -> Experiment:
    """60 steps, a snapshot every 10, one batch per evaluation."""
    train = {"max_steps": 60, "snapshots": Snapshots(every_steps=10)} | train
    reading = Reading(policy=policy, batch_size=20)  # type: ignore[arg-type]
    return dataclasses.replace(toy.experiment(reading=reading, **train), decode={})


def steps_of(logdir: Path, folder: str) -> list[int]:
    return [record["step"] for record in read_metrics(logdir / folder)]


def train_metrics(logdir: Path) -> list[dict[str, Any]]:
    """What was reported, without what depends on the clock."""
    clock = ("time", "steps_per_second", "examples_per_second", "input_wait_fraction", "snapshot_seconds")
    return [{k: v for k, v in record.items() if k not in clock} for record in read_metrics(logdir / "train")]


def assert_same_end(experiment: Experiment, logdir: Path, other: Path) -> None:
    abstract = jax.eval_shape(lambda: init_state(experiment, toy.batches(1)[0]))
    (state, position), (other_state, other_position) = (
        checkpoints.restore(path, checkpoints.steps(path)[-1], abstract) for path in (logdir, other)
    )
    toy.assert_bit_equal(state, other_state)
    assert position["input"] == other_position["input"]
    assert train_metrics(logdir) == train_metrics(other)
