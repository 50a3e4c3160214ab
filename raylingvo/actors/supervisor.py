"""The supervisor: starts the roles of a run as actors, watches over them, and decides when and why the run ends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

import ray
from ray.exceptions import RayError, RayTaskError
from rich.text import Text

from raylingvo.actors import remote
from raylingvo.actors.reader_role import ReaderRole, reader_roles
from raylingvo.errors import RequestError
from raylingvo.experiment import Experiment
from raylingvo.monitor.live import View
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.monitor.status import Status, TrainerStatus
from raylingvo.training import checkpoints, early_stop
from raylingvo.training.dev_based import dev_based

TICK_SECONDS = 1.0  # how often the live view is brought up to date

Ending = Literal["finished", "interrupted", "failed"]


class Supervisor:
    """One execution of an experiment. For one thread."""

    def __init__(self, experiment: Experiment, job: remote.Job, logdir: Any, view: View, dashboard: str | None):
        self._experiment = experiment
        self._job = job
        self._logdir = logdir
        self._view = view
        self._dashboard = dashboard
        self._started = time.monotonic()
        self._pending: dict[ray.ObjectRef, Callable[[ray.ObjectRef], None]] = {}
        self._trainer_status: dict[str, Any] = {"state": "starting", "step": 0}
        self._store_status: dict[str, Any] = {}
        self._trained: dict[str, Any] | None = None
        self._restarts = 0
        self._num_results = 0
        self._asked_to_stop: str | None = None
        self._resumable = False
        self._rate_factor = 1.0  # what the Trainer has been told
        self._trainer: Any = None
        self._trainer_is_lost = False
        self._last_tick = self._started
        self.failures: list[tuple[str, str]] = []  # (message, traceback)
        self.first_step_time: float | None = None
        self._roles = reader_roles(experiment)
        snapshots = experiment.train.snapshots
        # Beyond half of Ray's own store, Ray would move objects to disk before we do.
        max_bytes = min(snapshots.max_bytes, int(ray.cluster_resources().get("object_store_memory", 0) / 2))
        self._store = remote.start_store(job.run, max_bytes=max_bytes, max_count=snapshots.max_count)

    def wait(self, stop_request: Callable[[], str | None]) -> tuple[Ending, str]:
        """Runs to the end: (how it ended, why). `stop_request` gives a reason once the run should be interrupted.

        Raises RequestError if a role finds the request wrong (corrupt data, say).
        """
        try:
            if self._start():
                self._watch_over(stop_request)
            return self._ending()
        finally:
            self._show()
            self._kill_roles()

    def _start(self) -> bool:
        """Starts store and Trainer. False, and a failure recorded, if the store cannot be reached."""
        self._new_trainer()  # its process starts while the store's does
        registered = [self._register(role) for role in self._roles.values()]
        try:
            # All of them before the first snapshot: one of policy `every` must not miss it.
            for ref in registered:
                remote.fetch(ref)
        except RayError as error:
            self._record_failure("the SnapshotStore did not start", error)
            return False
        self._run_trainer()
        self._watch(self._store.results.remote(0), self._on_results)
        self._follow_metrics()  # an earlier run in this logdir may have come to a decision, and died
        return True

    def _watch_over(self, stop_request: Callable[[], str | None]) -> None:
        while not self._over():
            ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=TICK_SECONDS)
            for ref in ready:
                self._pending.pop(ref)(ref)
            if (reason := stop_request()) is not None:
                self._stop(reason, resumable=True)
            self._tick()
        self._last_news()

    def _kill_roles(self) -> None:
        for actor in (self._trainer, *(role.actor for role in self._roles.values())):
            if actor is not None:
                ray.kill(actor)
        with contextlib.suppress(RayError):  # it may be what failed
            remote.fetch(self._store.shutdown.remote())
        ray.kill(self._store)

    @property
    def trained(self) -> dict[str, Any]:
        """What the Trainer returned; empty if it did not get that far."""
        return self._trained or {}

    # -- the Trainer ---------------------------------------------------------------------------------------------------

    def _new_trainer(self) -> None:
        self._trainer = remote.start_trainer(self._job, self._experiment.resources.trainer, self._store)

    def _run_trainer(self) -> None:
        self._watch(self._trainer.run.remote(), self._on_trainer_end)

    def _on_trainer_end(self, ref: ray.ObjectRef) -> None:
        try:
            trained = remote.fetch(ref)
        except RayTaskError as error:
            self._trainer_failed("the Trainer failed", error)
        except RayError as error:  # killed: by hand, by the system, for its memory, with its machine
            if self._restarts >= self._experiment.train.max_restarts:
                self._trainer_failed(f"the Trainer died {self._restarts + 1} times", error)
                return
            self._restarts += 1
            self._view.event(f"the Trainer died; started again ({self._restarts}): {_line(error)}")
            self._new_trainer()
            self._trainer.scale_rate.remote(self._rate_factor)
            if self._asked_to_stop:
                self._trainer.stop.remote(self._resumable)
            self._run_trainer()
        else:
            self._note_trainer_status(trained.pop("status"))
            self._trained = trained
            self._store.close.remote(trained["step"])
            if not self._resumable:
                self._start_roles()

    def _on_trainer_status(self, ref: ray.ObjectRef) -> None:
        try:
            status = remote.fetch(ref)
        except RayError:
            return  # it died: _on_trainer_end deals with that
        if status is None or self._trained is not None:
            return  # not there yet, or its last word has been heard
        self._note_trainer_status(status)
        if self.first_step_time:  # not before, so that the other roles do not slow the first step down
            self._start_roles()

    def _note_trainer_status(self, status: dict[str, Any]) -> None:
        for event in status.pop("events"):
            self._view.event(event)
        self._trainer_status = status
        self.first_step_time = self.first_step_time or status["first_step_time"]

    def _stop(self, reason: str, *, resumable: bool) -> None:
        """Ends training. A request to interrupt the run also ends what an earlier decision to finish it waits for."""
        if self._asked_to_stop is None or (resumable and not self._resumable):
            self._asked_to_stop, self._resumable = reason, resumable
            self._view.event(f"stopping: {reason}")
            self._trainer.stop.remote(resumable)

    # -- Evalers and Decoders ------------------------------------------------------------------------------------------

    def _register(self, role: ReaderRole) -> ray.ObjectRef:
        done = [record["step"] for record in read_metrics(self._logdir / role.folder)]
        return self._store.register.remote(role.name, role.reading.policy, done)

    def _start_roles(self) -> None:
        for role in self._roles.values():
            if role.actor is None and role.ended is None:
                self._start_role(role)

    def _start_role(self, role: ReaderRole) -> None:
        role.actor = remote.start_reader(role.kind, role.dataset, role.name, self._job, role.resources, self._store)
        self._watch(role.actor.run.remote(), lambda ref: self._on_role_end(role, ref))

    def _on_role_end(self, role: ReaderRole, ref: ray.ObjectRef) -> None:
        try:
            remote.fetch(ref)
        except RayTaskError as error:
            self._lose(role, f"{role.name} failed", error)
        except RayError as error:
            if role.restarts >= role.reading.max_restarts:
                self._lose(role, f"{role.name} died {role.restarts + 1} times", error)
                return
            role.restarts += 1
            self._view.event(f"{role.name} died; started again ({role.restarts}): {_line(error)}")
            self._register(role)
            self._start_role(role)
        else:
            role.ended = "finished"

    def _lose(self, role: ReaderRole, what: str, error: RayError) -> None:
        """Training goes on without this role; the run will have failed."""
        role.ended = "failed"
        self._store.unregister.remote(role.name)
        if role.step is None and not role.restarts:
            _raise_if_request_error(error)  # it has never worked: better to say so now than when training is over
        self._record_failure(f"{what}; training goes on without it", error)

    def _on_results(self, ref: ray.ObjectRef) -> None:
        try:
            results = remote.fetch(ref)
        except RayError as error:
            self._record_failure("the SnapshotStore failed", error)
            self._stop("the SnapshotStore failed", resumable=True)
            return
        self._num_results += len(results)
        self._watch(self._store.results.remote(self._num_results), self._on_results)
        for result in results:
            role = self._roles[result["reader"]]
            role.step, role.metrics = result["step"], result["metrics"]
            role.lag_steps = max(0, self._trainer_status["step"] - role.step)
            self._show()
        self._follow_metrics()

    def _follow_metrics(self) -> None:
        """What evaluations have to say about the learning rate, and about the end."""
        train = self._experiment.train
        if train.dev_based is not None:
            factor = dev_based(train.dev_based, self._history(train.dev_based.metric))
            if factor != self._rate_factor:
                self._rate_factor = factor
                self._trainer.scale_rate.remote(factor)
        if train.early_stop is not None:
            reason = early_stop.stop_reason(train.early_stop, self._history(train.early_stop.metric))
            if reason is not None:
                self._stop(reason, resumable=False)

    def _history(self, metric: str) -> Iterable[tuple[int, float]]:
        return checkpoints.read_scores(self._logdir, metric).items()

    # -- the whole -----------------------------------------------------------------------------------------------------

    def _watch(self, ref: ray.ObjectRef, handle: Callable[[ray.ObjectRef], None]) -> None:
        self._pending[ref] = handle

    def _over(self) -> bool:
        if self._trained is None:
            return self._trainer_is_lost  # a reader that failed does not end training
        return self._resumable or all(role.ended for role in self._roles.values())

    def _ending(self) -> tuple[Ending, str]:
        if self.failures:
            return "failed", self.failures[0][0]
        if self._resumable:
            return "interrupted", self._asked_to_stop or ""
        return "finished", self._asked_to_stop or f"reached max_steps {self._experiment.train.max_steps}"

    def _trainer_failed(self, what: str, error: RayError) -> None:
        self._trainer_status["state"] = "failed"
        self._trainer_is_lost = True
        _raise_if_request_error(error)
        self._record_failure(what, error)

    def _record_failure(self, what: str, error: RayError) -> None:
        message = f"{what}: {_line(getattr(error, 'cause', None) or error)}"
        self._view.event(message)
        self.failures.append((message, _plain(str(error))))

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
            "elapsed": time.monotonic() - self._started,
            "trainer": {key: trainer[key] for key in TrainerStatus.__annotations__},  # type: ignore[typeddict-item]
            "readers": [role.status(self._store_status) for role in self._roles.values()],
            "store": {**store, "max_bytes": self._experiment.train.snapshots.max_bytes},
        }
        self._view.update(status)


_NO_TRAINER_STATUS = dict.fromkeys(TrainerStatus.__annotations__) | {
    "bad_records": 0,
    "skipped_updates": 0,
    "rollbacks": 0,
}


def _raise_if_request_error(error: RayError) -> None:
    """Raises the RequestError that a role raised, if that is what ended it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, RequestError):
        raise cause from None


def _line(error: BaseException) -> str:
    """The error in one line."""
    lines = _plain(str(error)).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _plain(text: str) -> str:
    """Without the colours that Ray puts into tracebacks."""
    return Text.from_ansi(text).plain
