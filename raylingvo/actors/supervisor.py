"""The supervisor: starts the roles of a run as actors, watches over them, and decides when and why the run ends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import ray
from ray.exceptions import RayError

from raylingvo.actors import remote
from raylingvo.actors.agenda import ignored
from raylingvo.actors.calls import fetch
from raylingvo.actors.execution import Execution
from raylingvo.actors.reader_role import reader_roles
from raylingvo.actors.trainer_role import TrainerRole
from raylingvo.actors.within import Command, Within
from raylingvo.experiment import Experiment, Policy
from raylingvo.monitor.exported import Sample, store_samples
from raylingvo.monitor.live import View
from raylingvo.monitor.status import Status
from raylingvo.training import checkpoints, early_stop
from raylingvo.training.dev_based import dev_based

TICK_SECONDS = 1.0  # how often the live view is brought up to date

Ending = Literal["finished", "interrupted", "failed"]


class Supervisor:
    """Of one execution of an experiment. For one thread."""

    def __init__(self, experiment: Experiment, job: remote.Job, logdir: Any, view: View, within: Within):
        self._started = self._last_tick = time.monotonic()
        self._experiment = experiment
        self._logdir = logdir
        self._view = view
        self._within = within
        self._execution = Execution(experiment, job, logdir, view, within)
        self._agenda = self._execution.agenda
        self._store = self._execution.store
        self._store_status: dict[str, Any] = {}
        self._store_life: str | None = None
        self._store_restarts = 0
        self._num_results = 0  # of this life of the store
        self._readers = reader_roles(self._execution)
        self._trainer = TrainerRole(self._execution, self._safe_step, self._on_trainer_news)
        self.failures = self._execution.failures  # (message, traceback)

    def wait(self, stop_request: Callable[[], str | None]) -> tuple[Ending, str]:
        """Runs to the end: (how it ended, why). `stop_request` gives a reason once the run should be interrupted.

        Raises RequestError if a role finds the request wrong (corrupt data, say).
        """
        self._trainer.stop_request = stop_request
        try:
            if self._start():
                self._watch_over()
            return self._ending()
        finally:
            try:
                self._show()
            finally:
                self._release_roles()

    def _start(self) -> bool:
        """Starts store and Trainer. False, and a failure recorded, if the store cannot be reached."""
        self._trainer.prepare()  # its process starts while the store's does
        for role in self._readers.values():
            role.recorded_before = {*role.recorded()}
        try:
            # With all readers before the first snapshot: one of policy `every` must not miss it.
            self._store_life, _ = fetch(self._store.open.remote(self._readers_for_store()))
        except RayError as error:
            self._execution.failed("the SnapshotStore did not start", error)
            return False
        self._within.opened(self._store)
        self._trainer.run()
        if self._within.workers.keep:  # most have compiled already, and somebody waits for each result
            self._start_readers()
        self._ask_for_results()
        self._ask_for_command()
        self._follow_metrics()  # an earlier run in this logdir may have come to a decision, and died
        return True

    def _watch_over(self) -> None:
        while not self._over():
            self._agenda.wait(TICK_SECONDS)
            self._trainer.heed_stop_request()
            # A run that is interrupted needs its Trainer for that, and waits no longer.
            self._agenda.do_what_is_due(hurry=self._trainer.resumable)
            self._tick()
        self._last_news()

    def _release_roles(self) -> None:
        self._trainer.release()
        for role in self._readers.values():
            role.release()
        try:
            self._within.closing()
        finally:
            with contextlib.suppress(RayError):  # it may be what failed
                fetch(self._store.shutdown.remote())
            ray.kill(self._store)

    @property
    def survived(self) -> dict[str, Any]:
        """What went wrong and did not end the run: restarts by role, preemptions, snapshots set aside by role."""
        restarts = {"Trainer": self._trainer.recovery.restarts, "SnapshotStore": self._store_restarts}
        return {
            "restarts": restarts | {name: role.recovery.restarts for name, role in self._readers.items()},
            "preemptions": self._trainer.preemptions,
            "set_aside": {name: role.set_aside for name, role in self._readers.items() if role.set_aside},
        }

    @property
    def trained(self) -> dict[str, Any]:
        """What the Trainer returned; empty if it did not get that far."""
        return self._trainer.trained or {}

    @property
    def first_step_time(self) -> float | None:
        return self._trainer.first_step_time

    # -- the SnapshotStore ---------------------------------------------------------------------------------------------

    def _readers_for_store(self) -> list[tuple[str, Policy, list[int]]]:
        """Each reader's name, policy, and the steps that are not to be given to it."""
        return [
            (role.name, role.reading.policy, [*role.recorded(), *role.set_aside])
            for role in self._readers.values()
            if role.ended != "failed"
        ]

    def _ask_for_results(self) -> None:
        results = self._store.results.remote(self._store_life, self._num_results)
        self._agenda.watch(results, self._on_results, self._on_store_lost)

    def _on_results(self, answer: tuple[str, list[dict[str, Any]]]) -> None:
        life, results = answer
        if life != self._store_life:
            self._on_new_store()
            self._store_life, self._num_results = life, 0
        self._num_results += len(results)
        self._ask_for_results()
        self._take(results)

    def _take(self, results: Iterable[Mapping[str, Any]]) -> None:
        for result in results:
            self._readers[result["reader"]].take(result, self._trainer.said["step"])
            self._show()
        self._follow_metrics()

    def _on_store_lost(self, error: RayError) -> None:
        self._execution.failed("the SnapshotStore failed", error)
        self._trainer.stop("the SnapshotStore failed", resumable=True)

    def _on_new_store(self) -> None:
        """Ray has started the store again: it knows nothing yet."""
        self._store_restarts += 1
        for role in self._readers.values():
            role.outlived_store = True
        had_snapshots = bool(self._store_status.get("held"))
        self._agenda.forget(self._on_store_status)  # of the one before
        self._store_status = {}
        self._show()
        told = f"the SnapshotStore died; started again ({self._store_restarts})"
        self._execution.restarted("SnapshotStore", "died", told)
        self._take(result for role in self._readers.values() for result in role.unheard())
        gang, trained = self._trainer.gang, self._trainer.trained
        trainer, last_step = gang and (gang.name, gang.actors), trained and trained["step"]
        opened = self._store.open.remote(self._readers_for_store(), trainer, last_step, self._store_restarts)
        self._agenda.watch(opened, lambda answer: self._on_store_open(had_snapshots, answer), self._on_store_lost)

    def _on_store_open(self, had_snapshots: bool, answer: tuple[str, bool]) -> None:
        _, refilled = answer
        if had_snapshots and not refilled:
            self._view.event("the SnapshotStore has lost its snapshots: the Trainer died at the same time")
        else:
            self._view.event("the SnapshotStore has its snapshots again")
        # Readers wait for the last step, which is on disk: a new Trainer publishes it.
        if not refilled and self._trainer.trained is not None and not self._trainer.resumable:
            self._trainer.trained = None
            self._trainer.start_again()

    def _on_store_status(self, status: dict[str, Any]) -> None:
        self._store_status = status

    # -- what follows from news ----------------------------------------------------------------------------------------

    def _on_trainer_news(self) -> None:
        if self._trainer.trained is not None and self._trainer.resumable:
            self._dismiss_readers()
        else:  # not before its first step, so that the other roles do not slow that down
            self._start_readers()

    def _start_readers(self) -> None:
        for role in self._readers.values():
            if role.actor is None and role.ended is None and not role.restarting:
                role.start()

    def _dismiss_readers(self) -> None:
        """Of a run that is interrupted: they would wait for ever, and could not be used again."""
        if self._within.workers.keep:
            self._store.dismiss.remote()

    def _safe_step(self) -> int:
        """What a Trainer would go on from, as far as is known."""
        return max(self._store_status.get("state_step") or 0, *checkpoints.steps(self._logdir), 0)

    def _follow_metrics(self) -> None:
        """What evaluations have to say about the learning rate, and about the end."""
        train = self._experiment.train
        if train.dev_based is not None:
            self._trainer.scale_rate(dev_based(train.dev_based, self._history(train.dev_based.metric)))
        if train.early_stop is not None:
            reason = early_stop.stop_reason(train.early_stop, self._history(train.early_stop.metric))
            if reason is not None:
                self._trainer.stop(reason, resumable=False)

    def _history(self, metric: str) -> Iterable[tuple[int, float]]:
        return checkpoints.read_scores(self._logdir, metric).items()

    def _ask_for_command(self) -> None:
        if self._within.commands is not None:
            self._agenda.watch(self._within.commands(), self._on_command)

    def _on_command(self, command: Command | None) -> None:
        """Of one who knows more than this run does: see Command."""
        if command is not None and command.do == "adopt":
            # What is commanded next waits for it: a run that is to pause is to have the state before it does.
            self._trainer.adopt(command, then=self._ask_for_command)
            return
        if command is not None:
            workers = self._within.workers
            workers.keep = workers.keep and not command.hurry
            self._trainer.stop(command.reason, resumable=command.do == "pause")
        self._ask_for_command()

    # -- the whole -----------------------------------------------------------------------------------------------------

    def _over(self) -> bool:
        trainer = self._trainer
        if trainer.trained is None:
            return trainer.is_lost  # a reader that failed does not end training
        if trainer.resumable and not self._within.workers.keep:
            return True
        at_work = (role for role in self._readers.values() if role.actor is not None or not trainer.resumable)
        return all(role.ended for role in at_work)

    def _ending(self) -> tuple[Ending, str]:
        if self.failures:
            return "failed", self.failures[0][0]
        reason = self._trainer.asked_to_stop
        if self._trainer.resumable:
            return "interrupted", reason or ""
        return "finished", reason or f"reached max_steps {self._experiment.train.max_steps}"

    def _tick(self) -> None:
        """Asks the Trainer and the store for news, unless an answer is still to come, and shows what is known."""
        now = time.monotonic()
        if now - self._last_tick < TICK_SECONDS:
            return
        self._last_tick = now
        self._trainer.ask_for_news()
        if self._trainer.trained is not None and self._trainer.resumable:
            self._dismiss_readers()  # whom a store that was started again has forgotten
        if not self._agenda.asked(self._on_store_status):
            self._agenda.watch(self._store.status.remote(), self._on_store_status, ignored)
        self._show()

    def _last_news(self) -> None:
        """What the store knows and has not been asked for since: the last evaluations, say."""
        try:
            self._store_status = fetch(self._store.status.remote())
            life, results = fetch(self._store.results.remote(None, 0))  # at once: all that there are
        except RayError:
            return  # it died for good: _on_store_lost has dealt with that
        self._take(results[self._num_results :] if life == self._store_life else results)

    def _show(self) -> None:
        store = {key: self._store_status.get(key, 0) for key in ("held", "bytes", "on_disk")}
        status: Status = {
            "run": self._execution.job.run,
            "experiment": self._experiment.name,
            "dashboard": self._within.cluster.dashboard,
            "elapsed": time.monotonic() - self._started,
            "trainer": self._trainer.status(),
            "readers": [role.status(self._store_status) for role in self._readers.values()],
            "store": {**store, "max_bytes": self._experiment.train.snapshots.max_bytes},  # type: ignore[typeddict-item]
            "samples": self._samples(),
        }
        self._view.update(status)

    def _samples(self) -> list[Sample]:
        """What the roles export."""
        now, trainer, store = time.time(), self._trainer, self._store_status
        found = self._execution.metrics.update(trainer.said["step"], training=trainer.trained is None)
        found = [*found, *trainer.said.get("samples", ())]
        for role in self._readers.values():
            found += role.samples(store, now)
        return [*found, *(store_samples(store, now) if store else ())]
