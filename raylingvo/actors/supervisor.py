"""The supervisor: starts the roles of a run as actors, watches over them, and decides when and why the run ends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import ray
from ray.exceptions import RayError, RayTaskError
from rich.text import Text

from raylingvo.actors import crashes, remote
from raylingvo.actors.calls import fetch
from raylingvo.actors.gang import Gang, in_words
from raylingvo.actors.metrics import RunMetrics
from raylingvo.actors.reader_role import ReaderRole, reader_roles
from raylingvo.actors.recovery import Failure, Recovery
from raylingvo.actors.within import Command, Within
from raylingvo.errors import DiskError, RequestError, TrainingFailed
from raylingvo.experiment import Experiment, Policy
from raylingvo.monitor import text
from raylingvo.monitor.exported import Cause, Sample, reader_samples, store_samples
from raylingvo.monitor.live import View
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.monitor.status import Status, TrainerStatus
from raylingvo.training import checkpoints, early_stop
from raylingvo.training.dev_based import dev_based

TICK_SECONDS = 1.0  # how often the live view is brought up to date
MACHINES_SECONDS = 20.0  # after which it is said that the Trainer has none yet
# How long the Trainer's other hosts are listened to when one of them says that it has lost the others.
PEERS_SECONDS = 5.0

Ending = Literal["finished", "interrupted", "failed"]


class Supervisor:
    """One execution of an experiment. For one thread."""

    def __init__(self, experiment: Experiment, job: remote.Job, logdir: Any, view: View, within: Within):
        self._experiment = experiment
        self._job = job
        self._logdir = logdir
        self._view = view
        self._within = within
        self._workers = within.workers
        self._started = time.monotonic()
        self._pending: dict[ray.ObjectRef, Callable[[ray.ObjectRef], None]] = {}
        self._trainer_status: dict[str, Any] = {"state": "starting", "step": 0}
        self._store_status: dict[str, Any] = {}
        self._trained: dict[str, Any] | None = None
        self._recovery = Recovery(experiment.train.max_restarts)
        self._preemptions = 0
        self._num_events = 0  # of the Trainer's that have been shown
        self._store_life: str | None = None
        self._store_restarts = 0
        self._num_results = 0  # of this life of the store
        self._later: list[tuple[float, Callable[[], None]]] = []  # restarts, and when they are due
        self._asked_to_stop: str | None = None
        self._resumable = False
        self._rate_factor = 1.0  # what the Trainer has been told
        self._stop_request: Callable[[], str | None] = lambda: None
        self._trainer: Gang | None = None
        self._trainer_is_lost = False
        self._asked_for_machines = self._started  # when
        self._has_machines = False  # the Trainer has, as far as is known
        self._says_what_it_waits_for = False
        self._last_tick = self._started
        self.failures: list[tuple[str, str]] = []  # (message, traceback)
        self.first_step_time: float | None = None
        self._metrics = RunMetrics(job.run, experiment.train.dataset, logdir)
        self._roles = reader_roles(experiment)
        snapshots = experiment.train.snapshots
        # Beyond half of Ray's own store, Ray would move objects to disk before we do. It may be on any machine.
        room = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
        max_bytes = min(snapshots.max_bytes, int(min(room) / 2 / (within.runs_beside + 1)))
        resources = experiment.resources.store
        self._store = remote.start_store(job, resources, max_bytes=max_bytes, max_count=snapshots.max_count)

    def wait(self, stop_request: Callable[[], str | None]) -> tuple[Ending, str]:
        """Runs to the end: (how it ended, why). `stop_request` gives a reason once the run should be interrupted.

        Raises RequestError if a role finds the request wrong (corrupt data, say).
        """
        self._stop_request = stop_request
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
        self._new_trainer()  # its process starts while the store's does
        for role in self._roles.values():
            role.recorded_before = {*self._recorded(role)}
        try:
            # With all readers before the first snapshot: one of policy `every` must not miss it.
            self._store_life, _ = fetch(self._store.open.remote(self._readers()))
        except RayError as error:
            self._record_failure("the SnapshotStore did not start", error)
            return False
        self._within.opened(self._store)
        self._run_trainer()
        if self._workers.keep:  # most have compiled already, and somebody waits for each result
            self._start_roles()
        self._ask_for_results()
        self._ask_for_command()
        self._follow_metrics()  # an earlier run in this logdir may have come to a decision, and died
        return True

    def _watch_over(self) -> None:
        while not self._over():
            ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=TICK_SECONDS)
            for ref in ready:
                self._pending.pop(ref)(ref)
            self._heed_stop_request()
            self._do_what_is_due()
            self._tick()
        self._last_news()

    def _heed_stop_request(self) -> None:
        if (reason := self._stop_request()) is not None:
            self._stop(reason, resumable=True)

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        # A run that is interrupted needs its Trainer for that, and waits no longer.
        due = [act for when, act in self._later if when <= now or self._resumable]
        self._later = [(when, act) for when, act in self._later if act not in due]
        for act in due:
            act()

    def _release_roles(self) -> None:
        self._release_trainer()
        for role in self._roles.values():
            if role.actor is not None:
                self._workers.release(role.actor, well=role.ended == "finished")
        try:
            self._within.closing()
        finally:
            with contextlib.suppress(RayError):  # it may be what failed
                fetch(self._store.shutdown.remote())
            ray.kill(self._store)

    @property
    def survived(self) -> dict[str, Any]:
        """What went wrong and did not end the run: restarts by role, preemptions, snapshots set aside by role."""
        restarts = {"Trainer": self._recovery.restarts, "SnapshotStore": self._store_restarts}
        return {
            "restarts": restarts | {name: role.recovery.restarts for name, role in self._roles.items()},
            "preemptions": self._preemptions,
            "set_aside": {name: role.set_aside for name, role in self._roles.items() if role.set_aside},
        }

    @property
    def trained(self) -> dict[str, Any]:
        """What the Trainer returned; empty if it did not get that far."""
        return self._trained or {}

    # -- the Trainer ---------------------------------------------------------------------------------------------------

    def _new_trainer(self) -> None:
        self._forget(self._on_trainer_status)  # of the one before
        resources = self._experiment.resources
        for host in range(resources.hosts):
            crashes.forget(self._logdir, crashes.trainer(host))
        self._trainer_status["state"] = "starting"
        self._trainer = remote.start_trainer(self._workers, self._job, resources, self._store)
        self._within.training(self._trainer.leader)
        self._num_events = 0
        self._asked_for_machines = time.monotonic()
        self._has_machines = self._says_what_it_waits_for = False

    def _release_trainer(self) -> None:
        if self._trainer is not None:
            for ref in self._trainer.refs:
                self._pending.pop(ref, None)
            self._trainer.release()
            self._trainer = None

    def _run_trainer(self) -> None:
        assert self._trainer is not None
        for ref in self._trainer.run():
            self._watch(ref, self._on_host_end)

    def _on_host_end(self, ref: ray.ObjectRef) -> None:
        """Of one of the Trainer's hosts. What becomes of the others is of no interest once one has ended badly."""
        trainer = self._trainer
        assert trainer is not None
        try:
            trainer.ended(ref, fetch(ref))
        except RayError as error:
            trainer.ended(ref, error)
            if trainer.cause(self._crash).certain:
                self._on_trainer_failure(trainer)
            else:  # there is more to hear; if not, then it was that
                self._later.append((time.monotonic() + PEERS_SECONDS, lambda: self._on_trainer_failure(trainer)))
            return
        if (trained := trainer.result()) is not None:
            self._on_trainer_end(trained)

    def _on_trainer_failure(self, trainer: Gang) -> None:
        if trainer is not self._trainer or trainer.result() is not None:
            return  # it has been dealt with
        host, error, _, lost = trainer.cause(self._crash)
        of = f" on host {host} of {len(trainer.actors)}" if len(trainer.actors) > 1 else ""
        if lost:
            self._restart_trainer("lost hosts", f"lost its other hosts{of}", _line(_cause(error)), error, None)
        elif isinstance(error, RayTaskError):
            self._on_trainer_error(error, of)
        else:  # killed: by hand, by the system, for its memory, with its machine
            crash = self._crash(host)
            failure = Failure(self._safe_step(), crash) if crash else None
            self._restart_trainer("crash" if crash else "died", f"died{of}", crash or _line(error), error, failure)

    def _crash(self, host: int) -> str:
        return crashes.read(self._logdir, crashes.trainer(host))

    def _on_trainer_end(self, trained: dict[str, Any]) -> None:
        self._note_trainer_status(trained.pop("status"))
        self._heed_stop_request()  # a signal to the whole process group reaches the Trainer first
        unfinished = trained["step"] < self._experiment.train.max_steps
        if trained.pop("preempted") and unfinished and not self._asked_to_stop:
            self._on_preemption(trained["step"])
            return
        self._trained = trained
        self._store.close.remote(trained["step"])
        if not self._resumable:
            self._start_roles()
        else:
            self._dismiss_readers()

    def _dismiss_readers(self) -> None:
        """Of a run that is interrupted: they would wait for ever, and could not be used again."""
        if self._workers.keep:
            self._store.dismiss.remote()

    def _on_trainer_error(self, error: RayTaskError, of: str) -> None:
        """It lives, and can tell how far it came."""
        assert self._trainer is not None
        try:
            status = fetch(self._trainer.leader.status.remote(self._num_events))
        except RayError:  # not any more
            status = None
        if status is not None:
            self._note_trainer_status(status)
        # What goes wrong before the first step is not bad luck.
        if isinstance(error.cause, RequestError | TrainingFailed) or self.first_step_time is None:
            self._trainer_failed(f"the Trainer failed{of}", _line(_cause(error)), error)
            return
        failure = Failure(self._trainer_status["step"], _line(error.cause or error))
        self._restart_trainer("error", f"failed{of} at step {failure.step}", failure.error, error, failure)

    def _restart_trainer(self, kind: Cause, what: str, why: str, error: RayError, failure: Failure | None) -> None:
        self._release_trainer()
        again = " again" if self._recovery.repeated(failure) else ""
        delay = self._recovery.delay(self._safe_step(), failure)
        if delay is None:
            self._trainer_failed(f"the Trainer {what}{again}", why, error)
            return
        self._metrics.restarted("Trainer", kind)
        self._view.event(f"the Trainer {what}; started again ({self._recovery.restarts}){_in(delay)}: {why}")
        self._trainer_status["state"] = "starting"
        self._later.append((time.monotonic() + delay, self._start_trainer_again))

    def _on_preemption(self, step: int) -> None:
        self._preemptions += 1
        self._metrics.restarted("Trainer", "preempted")
        self._view.event(f"the Trainer was told to go (SIGTERM), and has saved step {step}; started again")
        self._release_trainer()
        self._start_trainer_again()

    def _start_trainer_again(self) -> None:
        self._new_trainer()
        assert self._trainer is not None
        self._store.welcome.remote((self._trainer.name, self._trainer.actors))
        self._trainer.leader.scale_rate.remote(self._rate_factor)
        if self._asked_to_stop:
            self._trainer.leader.stop.remote(self._resumable)
        self._run_trainer()

    def _safe_step(self) -> int:
        """What a Trainer would go on from, as far as is known."""
        return max(self._store_status.get("state_step") or 0, *checkpoints.steps(self._logdir), 0)

    def _on_trainer_status(self, ref: ray.ObjectRef) -> None:
        try:
            status = fetch(ref)
        except RayError:
            return  # it died: _on_host_end deals with that
        self._has_machines = True
        if status is None or self._trained is not None:
            return  # not there yet, or its last word has been heard
        self._note_trainer_status(status)
        if self.first_step_time:  # not before, so that the other roles do not slow the first step down
            self._start_roles()

    def _note_trainer_status(self, status: dict[str, Any]) -> None:
        seen, events = status.pop("events")
        for event in events[self._num_events - seen :]:
            self._view.event(event)
        self._num_events = max(self._num_events, seen + len(events))
        self._trainer_status = status
        self.first_step_time = self.first_step_time or status["first_step_time"]

    def _stop(self, reason: str, *, resumable: bool) -> None:
        """Ends training. A request to interrupt the run also ends what an earlier decision to finish it waits for."""
        if self._asked_to_stop is None or (resumable and not self._resumable):
            self._asked_to_stop, self._resumable = reason, resumable
            self._view.event(f"stopping: {reason}")
            if self._trainer is not None:
                self._trainer.leader.stop.remote(resumable)

    def _ask_for_command(self) -> None:
        if self._within.commands is not None:
            self._watch(self._within.commands(), self._on_command)

    def _on_command(self, ref: ray.ObjectRef) -> None:
        """Of one who knows more than this run does: see Command."""
        command: Command | None = fetch(ref)
        if command is not None and command.do == "adopt" and self._trainer is not None:
            # What is commanded next waits for it: a run that is to pause is to have the state before it does.
            adopted = self._trainer.leader.adopt.remote(command)
            self._watch(adopted, self._on_adopted)
            return
        if command is not None and command.do != "adopt":
            self._workers.keep = self._workers.keep and not command.hurry
            self._stop(command.reason, resumable=command.do == "pause")
        self._ask_for_command()

    def _on_adopted(self, ref: ray.ObjectRef) -> None:
        try:
            fetch(ref)
        except RayError as error:  # nothing has changed; if it is the Trainer that died, others will say so
            self._view.event(f"the other run's state cannot be adopted: {_line(_cause(error))}")
        self._ask_for_command()

    # -- Evalers and Decoders ------------------------------------------------------------------------------------------

    def _readers(self) -> list[tuple[str, Policy, list[int]]]:
        """For the store: each reader's name, policy, and the steps that are not to be given to it."""
        return [
            (role.name, role.reading.policy, [*self._recorded(role), *role.set_aside])
            for role in self._roles.values()
            if role.ended != "failed"
        ]

    def _recorded(self, role: ReaderRole) -> list[int]:
        return [record["step"] for record in read_metrics(self._logdir / role.folder)]

    def _start_roles(self) -> None:
        for role in self._roles.values():
            if role.actor is None and role.ended is None and not role.restarting:
                self._start_role(role)

    def _start_role(self, role: ReaderRole) -> None:
        role.restarting = False
        role.began_with_store = self._store_restarts
        role.actor = remote.start_reader(
            self._workers, role.kind, role.dataset, role.name, self._job, role.resources, self._store
        )
        self._watch(role.actor.run.remote(), lambda ref: self._on_role_end(role, ref))

    def _on_role_end(self, role: ReaderRole, ref: ray.ObjectRef) -> None:
        try:
            fetch(ref)
        except RayError as error:
            self._on_role_error(role, error)
        else:
            role.ended = "finished"

    def _on_role_error(self, role: ReaderRole, error: RayError) -> None:
        self._workers.release(role.actor, well=False)
        role.actor, role.restarting = None, True
        self._watch(self._store.died.remote(role.name), lambda ref: self._on_role_died(role, error, ref))

    def _on_role_died(self, role: ReaderRole, error: RayError, ref: ray.ObjectRef) -> None:
        """The store has told which step it was working on."""
        try:
            step = fetch(ref)
        except RayError:
            return  # the store cannot be started again: _on_results deals with that
        failed = isinstance(error, RayTaskError)  # else it was killed, as the Trainer may be
        what = "failed" if failed else "died"
        started = step is not None or role.step is not None or role.began_with_store != self._store_restarts
        if isinstance(_cause(error), RequestError) or (failed and not started):  # not bad luck
            self._lose(role, f"{role.name} failed", error)
            return
        if step is not None and role.killed_by == step:
            self._view.event(f"{role.name} {what} twice on the snapshot of step {step}, which is set aside")
            role.set_aside.append(step)
            self._store.set_aside.remote(role.name, step)
        role.killed_by = step
        delay = role.recovery.delay(-1 if role.step is None else role.step)
        if delay is None:
            self._lose(role, f"{role.name} {what} after {text.count(role.recovery.restarts, 'restart')}", error)
            return
        count = role.recovery.restarts
        self._metrics.restarted(role.name, "error" if failed else "died")
        self._view.event(f"{role.name} {what}; started again ({count}){_in(delay)}: {_line(_cause(error))}")
        self._later.append((time.monotonic() + delay, lambda: self._start_role(role)))

    def _lose(self, role: ReaderRole, what: str, error: RayError) -> None:
        """Training goes on without this role; the run will have failed."""
        role.ended = "failed"
        self._store.unregister.remote(role.name)
        if role.step is None and not role.recovery.restarts and not isinstance(_cause(error), DiskError):
            _raise_if_request_error(error)  # it has never worked: better to say so now than when training is over
        self._record_failure(f"{what}; training goes on without it", error)

    def _ask_for_results(self) -> None:
        self._watch(self._store.results.remote(self._store_life, self._num_results), self._on_results)

    def _on_results(self, ref: ray.ObjectRef) -> None:
        try:
            life, results = fetch(ref)
        except RayError as error:
            self._store_failed(error)
            return
        if life != self._store_life:
            self._on_new_store()
            self._store_life, self._num_results = life, 0
        self._num_results += len(results)
        self._ask_for_results()
        self._take(results)

    def _take(self, results: Iterable[Mapping[str, Any]]) -> None:
        for result in results:
            role = self._roles[result["reader"]]
            role.step, role.metrics = result["step"], result["metrics"]
            role.done.add(result["step"])
            role.lag_steps = max(0, self._trainer_status["step"] - result["step"])
            self._show()
        self._follow_metrics()

    def _store_failed(self, error: RayError) -> None:
        self._record_failure("the SnapshotStore failed", error)
        self._stop("the SnapshotStore failed", resumable=True)

    def _on_new_store(self) -> None:
        """Ray has started the store again: it knows nothing yet."""
        self._store_restarts += 1
        self._metrics.restarted("SnapshotStore", "died")
        had_snapshots = bool(self._store_status.get("held"))
        self._forget(self._on_store_status)  # of the one before
        self._store_status = {}
        self._show()
        self._view.event(f"the SnapshotStore died; started again ({self._store_restarts})")
        self._take(result for role in self._roles.values() for result in self._unheard(role))
        last_step = self._trained["step"] if self._trained else None
        trainer = (self._trainer.name, self._trainer.actors) if self._trainer else None
        opened = self._store.open.remote(self._readers(), trainer, last_step, self._store_restarts)
        self._watch(opened, lambda ref: self._on_store_open(had_snapshots, ref))

    def _unheard(self, role: ReaderRole) -> list[dict[str, Any]]:
        """Results that the dead store has not passed on."""
        found = []
        for record in read_metrics(self._logdir / role.folder):
            step, _ = record.pop("step"), record.pop("time")
            if step not in role.recorded_before | role.done:
                found.append({"reader": role.name, "step": step, "metrics": record})
        return found

    def _on_store_open(self, had_snapshots: bool, ref: ray.ObjectRef) -> None:
        try:
            _, refilled = fetch(ref)
        except RayError as error:
            self._store_failed(error)
            return
        if had_snapshots and not refilled:
            self._view.event("the SnapshotStore has lost its snapshots: the Trainer died at the same time")
        else:
            self._view.event("the SnapshotStore has its snapshots again")
        # Readers wait for the last step, which is on disk: a new Trainer publishes it.
        if not refilled and self._trained is not None and not self._resumable:
            self._trained = None
            self._start_trainer_again()

    def _follow_metrics(self) -> None:
        """What evaluations have to say about the learning rate, and about the end."""
        train = self._experiment.train
        if train.dev_based is not None:
            factor = dev_based(train.dev_based, self._history(train.dev_based.metric))
            if factor != self._rate_factor:
                self._rate_factor = factor
                if self._trainer is not None:  # else the next one is told
                    self._trainer.leader.scale_rate.remote(factor)
        if train.early_stop is not None:
            reason = early_stop.stop_reason(train.early_stop, self._history(train.early_stop.metric))
            if reason is not None:
                self._stop(reason, resumable=False)

    def _history(self, metric: str) -> Iterable[tuple[int, float]]:
        return checkpoints.read_scores(self._logdir, metric).items()

    # -- the whole -----------------------------------------------------------------------------------------------------

    def _watch(self, ref: ray.ObjectRef, handle: Callable[[ray.ObjectRef], None]) -> None:
        self._pending[ref] = handle

    def _forget(self, handle: Callable[[ray.ObjectRef], None]) -> None:
        """No answer that is still to come is of interest to this handler."""
        self._pending = {ref: other for ref, other in self._pending.items() if other != handle}

    def _over(self) -> bool:
        if self._trained is None:
            return self._trainer_is_lost  # a reader that failed does not end training
        if self._resumable and not self._workers.keep:
            return True
        at_work = (role for role in self._roles.values() if role.actor is not None or not self._resumable)
        return all(role.ended for role in at_work)

    def _ending(self) -> tuple[Ending, str]:
        if self.failures:
            return "failed", self.failures[0][0]
        if self._resumable:
            return "interrupted", self._asked_to_stop or ""
        return "finished", self._asked_to_stop or f"reached max_steps {self._experiment.train.max_steps}"

    def _trainer_failed(self, what: str, why: str, error: RayError) -> None:
        self._trainer_status["state"] = "failed"
        self._trainer_is_lost = True
        _raise_if_request_error(error)
        self._record_failure(what, error, why)

    def _record_failure(self, what: str, error: RayError, why: str = "") -> None:
        message = f"{what}: {why or _line(_cause(error))}"
        self._view.event(message)
        self.failures.append((message, _plain(str(error))))

    def _tick(self) -> None:
        """Asks the Trainer and the store for news, unless an answer is still to come, and shows what is known."""
        now = time.monotonic()
        if now - self._last_tick < TICK_SECONDS:
            return
        self._last_tick = now
        if self._trained is None and self._trainer is not None:
            self._look_for_machines(now)
            if not self._asked(self._on_trainer_status):
                self._watch(self._trainer.leader.status.remote(self._num_events), self._on_trainer_status)
        if self._trained is not None and self._resumable:
            self._dismiss_readers()  # whom a store that was started again has forgotten
        if not self._asked(self._on_store_status):
            self._watch(self._store.status.remote(), self._on_store_status)
        self._show()

    def _look_for_machines(self, now: float) -> None:
        """Says what the Trainer waits for, if there is no machine for it; a run that is to be interrupted does not."""
        if self._has_machines or now - self._asked_for_machines < MACHINES_SECONDS:
            return
        resources, free = self._experiment.resources, ray.available_resources()
        wanted = resources.trainer.amounts
        if all(amount * resources.hosts <= free.get(name, 0.0) for name, amount in wanted.items()):
            return  # it only takes its time
        if self._resumable:
            step, newest = max(checkpoints.steps(self._logdir), default=0), self._safe_step()
            lost = f"; step {newest}, which is in memory, is lost" if newest > step else ""
            self._view.event(f"the Trainer has no machine to write a checkpoint on: {step} is the newest{lost}")
            self._trained = {"step": step}
        elif not self._says_what_it_waits_for:
            asked_for = in_words(wanted, resources.hosts)
            self._view.event(f"the Trainer waits for machines: it asks the cluster for {asked_for}")
        self._says_what_it_waits_for = True

    def _asked(self, handler: Callable[[ray.ObjectRef], None]) -> bool:
        return handler in self._pending.values()

    def _on_store_status(self, ref: ray.ObjectRef) -> None:
        try:
            self._store_status = fetch(ref)
        except RayError:
            return  # it died: _on_results deals with that

    def _last_news(self) -> None:
        """What the store knows and has not been asked for since: the last evaluations, say."""
        try:
            self._store_status = fetch(self._store.status.remote())
            life, results = fetch(self._store.results.remote(None, 0))  # at once: all that there are
        except RayError:
            return  # it died for good: _on_results has dealt with that
        self._take(results[self._num_results :] if life == self._store_life else results)

    def _show(self) -> None:
        trainer = {**_NO_TRAINER_STATUS, **self._trainer_status}
        trainer["max_steps"] = self._experiment.train.max_steps
        trainer["restarts"], trainer["preemptions"] = self._recovery.restarts, self._preemptions
        if self._asked_to_stop and trainer["state"] == "training":
            trainer["state"] = "stopping"
        store = {key: self._store_status.get(key, 0) for key in ("held", "bytes", "on_disk")}
        status: Status = {
            "run": self._job.run,
            "experiment": self._experiment.name,
            "dashboard": self._within.cluster.dashboard,
            "elapsed": time.monotonic() - self._started,
            "trainer": {key: trainer[key] for key in TrainerStatus.__annotations__},  # type: ignore[typeddict-item]
            "readers": [role.status(self._store_status) for role in self._roles.values()],
            "store": {**store, "max_bytes": self._experiment.train.snapshots.max_bytes},
            "samples": self._samples(trainer["step"]),
        }
        self._view.update(status)

    def _samples(self, step: int) -> list[Sample]:
        """What the roles export."""
        now = time.time()
        found = self._metrics.update(step, training=self._trained is None)
        found = [*found, *self._trainer_status.get("samples", ())]
        for role in self._roles.values():
            since = self._store_status.get("readers", {}).get(role.name, {}).get("working_since")
            found += reader_samples(role.kind, role.dataset, role.metrics, role.step, since, now)
        return [*found, *(store_samples(self._store_status, now) if self._store_status else ())]


_NO_TRAINER_STATUS = dict.fromkeys(TrainerStatus.__annotations__) | {
    "bad_records": 0,
    "skipped_updates": 0,
    "rollbacks": 0,
}


def _in(delay: float) -> str:
    return f" in {delay:g} s" if delay else ""


def _cause(error: RayError) -> BaseException:
    """What was raised in the role, if it was."""
    return getattr(error, "cause", None) or error


def _raise_if_request_error(error: RayError) -> None:
    """Raises the RequestError that a role raised, if that is what ended it."""
    cause = _cause(error)
    if isinstance(cause, RequestError):
        raise cause from None


def _line(error: BaseException) -> str:
    """The error in one line."""
    lines = _plain(str(error)).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _plain(coloured: str) -> str:
    """Without the colours that Ray puts into tracebacks."""
    return Text.from_ansi(coloured).plain
