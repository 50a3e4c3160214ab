"""The supervisor: starts the roles of a run as actors, watches over them, and decides when and why the run ends."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from raylingvo.actors import remote
from raylingvo.errors import RequestError
from raylingvo.experiment import Experiment, Reading, RoleResources
from raylingvo.monitor.live import View
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.monitor.status import ReaderStatus, Status, TrainerStatus
from raylingvo.training import checkpoints, early_stop

TICK_SECONDS = 0.5  # how often the live view is brought up to date

Ending = Literal["finished", "interrupted", "failed"]


@dataclasses.dataclass
class _Role:
    """An Evaler or Decoder, through its lives."""

    kind: Literal["evaler", "decoder"]
    dataset: str
    reading: Reading
    resources: RoleResources
    actor: Any = None
    ended: Literal["finished", "failed"] | None = None
    restarts: int = 0
    step: int | None = None
    lag_steps: int | None = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.kind.capitalize()}({self.dataset})"

    @property
    def folder(self) -> str:
        return f"{'eval' if self.kind == 'evaler' else 'decode'}_{self.dataset}"


class Supervisor:
    """One execution of an experiment. For one thread."""

    def __init__(self, experiment: Experiment, job: remote.Job, logdir: Any, view: View, dashboard: str | None):
        self._experiment = experiment
        self._job = job
        self._logdir = logdir
        self._view = view
        self._dashboard = dashboard
        self._start = time.monotonic()
        self._pending: dict[ray.ObjectRef, Callable[[ray.ObjectRef], None]] = {}
        self._trainer_status: dict[str, Any] = {"state": "starting", "step": 0}
        self._store_status: dict[str, Any] = {}
        self._trained: dict[str, Any] | None = None
        self._restarts = 0
        self._num_results = 0
        self._asked_to_stop: str | None = None
        self._resumable = False
        self._trainer: Any = None
        self._trainer_failed = False
        self._last_tick = self._start
        self.failures: list[tuple[str, str]] = []  # (message, traceback)
        self.first_step_time: float | None = None
        resources = experiment.resources
        self._roles = {
            role.name: role
            for role in (
                *(_Role("evaler", name, reading, resources.evaler) for name, reading in experiment.eval.items()),
                *(_Role("decoder", name, reading, resources.decoder) for name, reading in experiment.decode.items()),
            )
        }
        snapshots = experiment.train.snapshots
        self._store = remote.start_store(job.run, max_bytes=snapshots.max_bytes, max_count=snapshots.max_count)

    def wait(self, stop_request: Callable[[], str | None]) -> tuple[Ending, str]:
        """Runs to the end: (how it ended, why). `stop_request` gives a reason once the run should be interrupted.

        Raises RequestError if a role finds the request wrong (corrupt data, say).
        """
        try:
            # All of them before the first snapshot: one of policy `every` must not miss it.
            for role in self._roles.values():
                remote.fetch(self._register(role))
            self._start_trainer()
            self._watch(self._store.results.remote(0), self._on_results)
            while not self._over():
                ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=TICK_SECONDS)
                for ref in ready:
                    self._pending.pop(ref)(ref)
                if (reason := stop_request()) is not None:
                    self._stop(reason, resumable=True)
                self._tick()
            self._last_news()
            return self._ending()
        finally:
            self._show()
            for actor in (self._trainer, self._store, *(role.actor for role in self._roles.values())):
                if actor is not None:
                    ray.kill(actor)

    @property
    def trained(self) -> dict[str, Any]:
        """What the Trainer returned; empty if it did not get that far."""
        return self._trained or {}

    # -- the Trainer ---------------------------------------------------------------------------------------------------

    def _start_trainer(self) -> None:
        self._trainer = remote.start_trainer(self._job, self._experiment.resources.trainer, self._store)
        self._watch(self._trainer.run.remote(), self._on_trainer_end)

    def _on_trainer_end(self, ref: ray.ObjectRef) -> None:
        try:
            trained = remote.fetch(ref)
        except RayTaskError as error:
            self._fail("the Trainer failed", error)
        except RayActorError as error:
            if self._restarts >= self._experiment.train.max_restarts:
                self._fail(f"the Trainer died {self._restarts + 1} times", error)
                return
            self._restarts += 1
            self._view.event(f"the Trainer died; started again ({self._restarts}): {_line(error)}")
            self._start_trainer()
            if self._asked_to_stop:
                self._trainer.stop.remote(self._asked_to_stop, self._resumable)
        else:
            self._trained = trained
            self._trainer_status.update(state="finished", step=trained["step"])
            self._store.close.remote()
            self._start_roles()

    def _on_trainer_status(self, ref: ray.ObjectRef) -> None:
        try:
            status = remote.fetch(ref)
        except RayError:
            return  # it died: _on_trainer_end deals with that
        for event in status.pop("events"):
            self._view.event(event)
        self._trainer_status = status
        self.first_step_time = self.first_step_time or status["first_step_time"]
        if self.first_step_time:  # so that the other roles do not slow the first step down
            self._start_roles()

    def _stop(self, reason: str, *, resumable: bool) -> None:
        if self._asked_to_stop is None:
            self._asked_to_stop, self._resumable = reason, resumable
            self._view.event(f"stopping: {reason}")
            self._trainer.stop.remote(reason, resumable)

    # -- Evalers and Decoders ------------------------------------------------------------------------------------------

    def _register(self, role: _Role) -> ray.ObjectRef:
        done = [record["step"] for record in read_metrics(self._logdir / role.folder)]
        return self._store.register.remote(role.name, role.reading.policy, done)

    def _start_roles(self) -> None:
        for role in self._roles.values():
            if role.actor is None and role.ended is None:
                self._start_role(role)

    def _start_role(self, role: _Role) -> None:
        role.actor = remote.start_reader(role.kind, role.dataset, role.name, self._job, role.resources, self._store)
        self._watch(role.actor.run.remote(), lambda ref: self._on_role_end(role, ref))

    def _on_role_end(self, role: _Role, ref: ray.ObjectRef) -> None:
        try:
            remote.fetch(ref)
        except RayTaskError as error:
            self._lose(role, f"{role.name} failed", error)
        except RayActorError as error:
            if role.restarts >= role.reading.max_restarts:
                self._lose(role, f"{role.name} died {role.restarts + 1} times", error)
                return
            role.restarts += 1
            self._view.event(f"{role.name} died; started again ({role.restarts}): {_line(error)}")
            self._register(role)
            self._start_role(role)
        else:
            role.ended = "finished"

    def _lose(self, role: _Role, what: str, error: RayError) -> None:
        """Training goes on without this role; the run will have failed."""
        role.ended = "failed"
        self._store.unregister.remote(role.name)
        self._record_failure(f"{what}; training goes on without it", error)

    def _on_results(self, ref: ray.ObjectRef) -> None:
        try:
            results = remote.fetch(ref)
        except RayError as error:
            self._fail("the SnapshotStore died", error)
            self._stop("the SnapshotStore died", resumable=True)
            return
        self._num_results += len(results)
        self._watch(self._store.results.remote(self._num_results), self._on_results)
        for result in results:
            role = self._roles[result["reader"]]
            role.step, role.metrics = result["step"], result["metrics"]
            role.lag_steps = max(0, self._trainer_status["step"] - role.step)
            self._show()
        self._stop_early()

    def _stop_early(self) -> None:
        config = self._experiment.train.early_stop
        if config is None:
            return
        reason = early_stop.stop_reason(config, checkpoints.read_scores(self._logdir, config.metric).items())
        if reason is not None:
            self._stop(reason, resumable=False)

    # -- the whole -----------------------------------------------------------------------------------------------------

    def _watch(self, ref: ray.ObjectRef, handle: Callable[[ray.ObjectRef], None]) -> None:
        self._pending[ref] = handle

    def _over(self) -> bool:
        if self._trained is None:
            return self._trainer_failed  # a reader that failed does not end training
        return self._resumable or all(role.ended for role in self._roles.values())

    def _ending(self) -> tuple[Ending, str]:
        if self.failures:
            return "failed", self.failures[0][0]
        if self._resumable:
            return "interrupted", self._asked_to_stop or ""
        return "finished", self._asked_to_stop or f"reached max_steps {self._experiment.train.max_steps}"

    def _fail(self, what: str, error: RayError) -> None:
        self._trainer_status["state"] = "failed"
        self._trainer_failed = True
        self._record_failure(what, error)

    def _record_failure(self, what: str, error: RayError) -> None:
        cause = getattr(error, "cause", None)
        if isinstance(cause, RequestError):
            raise cause from error
        message = f"{what}: {_line(cause or error)}"
        self._view.event(message)
        self.failures.append((message, str(error)))

    def _tick(self) -> None:
        """Asks the Trainer and the store for news, unless an answer is still to come, and shows what is known."""
        now = time.monotonic()
        if now - self._last_tick < TICK_SECONDS:
            return
        self._last_tick = now
        if self._trained is None and not self._asked(self._on_trainer_status):
            self._watch(self._trainer.status.remote(), self._on_trainer_status)
        if not self._asked(self._on_store_status):
            self._watch(self._store.status.remote(), self._on_store_status)
        self._show()

    def _asked(self, handler: Callable[[ray.ObjectRef], None]) -> bool:
        return handler in self._pending.values()

    def _on_store_status(self, ref: ray.ObjectRef) -> None:
        try:
            self._store_status = remote.fetch(ref)
        except RayError:
            return  # it died: _on_results deals with that

    def _last_news(self) -> None:
        """What the store knows and has not been asked for since: the last evaluations, say."""
        try:
            self._store_status = remote.fetch(self._store.status.remote())
            if sum(reader["done"] for reader in self._store_status["readers"].values()) > self._num_results:
                self._on_results(self._store.results.remote(self._num_results))
        except RayError:
            return  # it died: _on_results has dealt with that

    def _show(self) -> None:
        trainer = {**_NO_TRAINER_STATUS, **self._trainer_status}
        trainer["max_steps"] = self._experiment.train.max_steps
        trainer["restarts"] = self._restarts
        if self._asked_to_stop and trainer["state"] == "training":
            trainer["state"] = "stopping"
        store = {key: self._store_status.get(key, 0) for key in ("held", "bytes", "on_disk")}
        status: Status = {
            "run": self._job.run,
            "experiment": self._experiment.name,
            "dashboard": self._dashboard,
            "elapsed": time.monotonic() - self._start,
            "trainer": {key: trainer[key] for key in TrainerStatus.__annotations__},  # type: ignore[typeddict-item]
            "readers": [self._reader_status(role) for role in self._roles.values()],
            "store": {**store, "max_bytes": self._experiment.train.snapshots.max_bytes},
        }
        self._view.update(status)

    def _reader_status(self, role: _Role) -> ReaderStatus:
        known = self._store_status.get("readers", {}).get(role.name, {})
        working = "working" if known.get("working_on") is not None else "waiting"
        return {
            "name": role.name,
            "role": role.kind,
            "dataset": role.dataset,
            "policy": role.reading.policy,
            "state": role.ended or ("starting" if role.actor is None else working),
            "step": role.step,
            "lag_steps": role.lag_steps,
            "lag_seconds": role.metrics.get("lag_seconds"),
            "done": known.get("done", 0),
            "skipped": known.get("skipped", 0),
            "waiting": known.get("waiting", 0),
            "metrics": role.metrics,
            "restarts": role.restarts,
        }


_NO_TRAINER_STATUS = dict.fromkeys(TrainerStatus.__annotations__) | {"skipped_updates": 0, "rollbacks": 0}


def _line(error: BaseException | None) -> str:
    """The error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
