"""An Evaler or Decoder as its supervisor knows it, through all its lives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ray.exceptions import RayError, RayTaskError

from raylingvo.actors import remote
from raylingvo.actors.agenda import ignored
from raylingvo.actors.execution import Execution, cause, line, raise_if_request_error, started_again
from raylingvo.actors.recovery import Recovery
from raylingvo.errors import DiskError, RequestError
from raylingvo.experiment import Reading, RoleResources
from raylingvo.monitor import text
from raylingvo.monitor.exported import Sample, reader_samples
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.monitor.status import ReaderState, ReaderStatus


@dataclasses.dataclass
class ReaderRole:
    """What it is to do, the actor that does it now, and its last result."""

    execution: Execution
    kind: Literal["evaler", "decoder"]
    dataset: str
    reading: Reading
    resources: RoleResources
    actor: Any = None
    ended: Literal["finished", "failed"] | None = None
    restarting: bool = False  # when its time has come
    outlived_store: bool = False  # the store has been started again since the actor began
    killed_by: int | None = None  # the step it was working on when it died last
    recorded_before: set[int] = dataclasses.field(default_factory=set)  # steps with a result when this run started
    done: set[int] = dataclasses.field(default_factory=set)  # and since
    set_aside: list[int] = dataclasses.field(default_factory=list)  # steps that killed it twice
    step: int | None = None  # of the last result
    lag_steps: int | None = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.recovery = Recovery(self.reading.max_restarts)

    @property
    def name(self) -> str:
        """What the store and the live view call it."""
        return f"{self.kind.capitalize()}({self.dataset})"

    @property
    def folder(self) -> str:
        """Where it writes, in the logdir."""
        return f"{'eval' if self.kind == 'evaler' else 'decode'}_{self.dataset}"

    def recorded(self) -> list[int]:
        """Steps with a result, in this execution or one before."""
        return [record["step"] for record in read_metrics(self.execution.logdir / self.folder)]

    def start(self) -> None:
        self.restarting = self.outlived_store = False
        workers, job, store = self.execution.within.workers, self.execution.job, self.execution.store
        self.actor = remote.start_reader(workers, self.kind, self.dataset, self.name, job, self.resources, store)
        self.execution.agenda.watch(self.actor.run.remote(), self._on_end, self._on_error)

    def release(self) -> None:
        if self.actor is not None:
            self.execution.within.workers.release(self.actor, well=self.ended == "finished")

    def take(self, result: Mapping[str, Any], trainer_step: int) -> None:
        """result: as the store has been given it."""
        self.step, self.metrics = result["step"], result["metrics"]
        self.done.add(result["step"])
        self.lag_steps = max(0, trainer_step - result["step"])

    def unheard(self) -> list[dict[str, Any]]:
        """Results that a store which has died has not passed on."""
        found = []
        for record in read_metrics(self.execution.logdir / self.folder):
            step, _ = record.pop("step"), record.pop("time")
            if step not in self.recorded_before | self.done:
                found.append({"reader": self.name, "step": step, "metrics": record})
        return found

    def _on_end(self, _result: None) -> None:
        self.ended = "finished"

    def _on_error(self, error: RayError) -> None:
        self.execution.within.workers.release(self.actor, well=False)
        self.actor, self.restarting = None, True
        died = self.execution.store.died.remote(self.name)
        self.execution.agenda.watch(died, lambda step: self._on_died(error, step), ignored)

    def _on_died(self, error: RayError, step: int | None) -> None:
        """The store has told which step it was working on."""
        failed = isinstance(error, RayTaskError)  # else it was killed, as the Trainer may be
        what = "failed" if failed else "died"
        started = step is not None or self.step is not None or self.outlived_store
        if isinstance(cause(error), RequestError) or (failed and not started):  # not bad luck
            self._lose("failed", error)
            return
        if step is not None and self.killed_by == step:
            told = f"{self.name} {what} twice on the snapshot of step {step}, which is set aside"
            self.execution.view.event(told)
            self.set_aside.append(step)
            self.execution.store.set_aside.remote(self.name, step)
        self.killed_by = step
        delay = self.recovery.delay(-1 if self.step is None else self.step)
        count = self.recovery.restarts
        if delay is None:
            self._lose(f"{what} after {text.count(count, 'restart')}", error)
            return
        told = f"{self.name} {what}; {started_again(count, delay)}: {line(error)}"
        self.execution.restarted(self.name, "error" if failed else "died", told)
        self.execution.agenda.later(delay, self.start)

    def _lose(self, what: str, error: RayError) -> None:
        """Training goes on without this role; the run will have failed."""
        self.ended = "failed"
        self.execution.store.unregister.remote(self.name)
        if self.step is None and not self.recovery.restarts and not isinstance(cause(error), DiskError):
            raise_if_request_error(error)  # it has never worked: better to say so now than when training is over
        self.execution.failed(f"{self.name} {what}; training goes on without it", error)

    def status(self, store: Mapping[str, Any]) -> ReaderStatus:
        """For the live view. store: the SnapshotStore's status."""
        known = store.get("readers", {}).get(self.name, {})
        state: ReaderState = "working" if known.get("working_on") is not None else "waiting"
        return {
            "name": self.name,
            "role": self.kind,
            "dataset": self.dataset,
            "policy": self.reading.policy,
            "state": self.ended or ("starting" if self.actor is None else state),
            "step": self.step,
            "lag_steps": self.lag_steps,
            "lag_seconds": self.metrics.get("lag_seconds"),
            "done": len(self.done),
            "skipped": known.get("skipped", 0),
            "waiting": known.get("waiting", 0),
            "metrics": self.metrics,
            "restarts": self.recovery.restarts,
            "set_aside": len(self.set_aside),
        }

    def samples(self, store: Mapping[str, Any], now: float) -> list[Sample]:
        """What it exports. store: as above. now: Unix seconds."""
        since = store.get("readers", {}).get(self.name, {}).get("working_since")
        return reader_samples(self.kind, self.dataset, self.metrics, self.step, since, now)


def reader_roles(execution: Execution) -> dict[str, ReaderRole]:
    """Name -> role, for every Evaler and Decoder of an experiment."""
    experiment, resources = execution.experiment, execution.experiment.resources
    evalers = (ReaderRole(execution, "evaler", *item, resources.evaler) for item in experiment.eval.items())
    decoders = (ReaderRole(execution, "decoder", *item, resources.decoder) for item in experiment.decode.items())
    return {role.name: role for role in (*evalers, *decoders)}
