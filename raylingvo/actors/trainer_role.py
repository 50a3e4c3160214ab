"""The Trainer as its supervisor knows it, through all its lives."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from raylingvo.actors import crashes, remote
from raylingvo.actors.agenda import ignored
from raylingvo.actors.calls import fetch
from raylingvo.actors.execution import Execution, line, raise_if_request_error, started_again
from raylingvo.actors.gang import Gang, in_words
from raylingvo.actors.recovery import Failure, Recovery
from raylingvo.actors.within import Command
from raylingvo.errors import RequestError, TrainingFailed
from raylingvo.monitor.exported import Cause
from raylingvo.monitor.status import TrainerStatus
from raylingvo.training import checkpoints

MACHINES_SECONDS = 20.0  # after which it is said that the Trainer has none yet
# How long the Trainer's other hosts are listened to when one of them says that it has lost the others.
PEERS_SECONDS = 5.0


class TrainerRole:
    """What it is told in each life, the gang of actors that it is in this one, and what it has said last."""

    def __init__(self, execution: Execution, safe_step: Callable[[], int], on_news: Callable[[], None]):
        """safe_step: what a new life would go on from, as far as is known.

        on_news: called with each status from the first step on, and when it has come to its end.
        """
        self._execution = execution
        self._experiment = execution.experiment
        self._view = execution.view
        self._agenda = execution.agenda
        self._safe_step = safe_step
        self._on_news = on_news
        self.stop_request: Callable[[], str | None] = lambda: None
        self.asked_to_stop: str | None = None  # why
        self.resumable = False
        self._rate_factor = 1.0
        self.gang: Gang | None = None
        self._asked_for_machines = 0.0  # when
        self._has_machines = False  # as far as is known
        self._says_what_it_waits_for = False
        self.said: dict[str, Any] = {"state": "starting", "step": 0}  # its last status
        self._num_events = 0  # of this life, that have been shown
        self.first_step_time: float | None = None
        self.trained: dict[str, Any] | None = None  # what it has returned
        self.is_lost = False
        self.recovery = Recovery(self._experiment.train.max_restarts)
        self.preemptions = 0

    def status(self) -> TrainerStatus:
        """For the live view."""
        status = {**_NOTHING_SAID, **self.said, "max_steps": self._experiment.train.max_steps}
        status["restarts"], status["preemptions"] = self.recovery.restarts, self.preemptions
        if self.asked_to_stop and status["state"] == "training":
            status["state"] = "stopping"
        return {key: status[key] for key in TrainerStatus.__annotations__}  # type: ignore[return-value]

    def heed_stop_request(self) -> None:
        if (reason := self.stop_request()) is not None:
            self.stop(reason, resumable=True)

    def stop(self, reason: str, *, resumable: bool) -> None:
        """Ends training. A request to interrupt the run also ends what an earlier decision to finish it waits for."""
        if self.asked_to_stop is None or (resumable and not self.resumable):
            self.asked_to_stop, self.resumable = reason, resumable
            self._view.event(f"stopping: {reason}")
            if self.gang is not None:
                self.gang.leader.stop.remote(resumable)

    def scale_rate(self, factor: float) -> None:
        if factor != self._rate_factor:
            self._rate_factor = factor
            if self.gang is not None:  # else the next one is told
                self.gang.leader.scale_rate.remote(factor)

    def adopt(self, command: Command, then: Callable[[], None]) -> None:
        """Goes on with another run's state. `then()` follows when it has been told so, or cannot be."""

        def failed(error: RayError) -> None:  # nothing has changed; if it is the Trainer that died, others will say so
            self._view.event(f"the other run's state cannot be adopted: {line(error)}")
            then()

        if self.gang is None:
            then()
        else:
            self._agenda.watch(self.gang.leader.adopt.remote(command), lambda _: then(), failed)

    def prepare(self) -> None:
        """Starts the processes of a new life."""
        self._agenda.forget(self._on_status)  # of the one before
        execution, resources = self._execution, self._experiment.resources
        for host in range(resources.hosts):
            crashes.forget(execution.logdir, crashes.trainer(host))
        self.said["state"] = "starting"
        self.gang = remote.start_trainer(execution.within.workers, execution.job, resources, execution.store)
        self._num_events = 0
        self._asked_for_machines = time.monotonic()
        self._has_machines = self._says_what_it_waits_for = False

    def run(self) -> None:
        """Starts training, in a life that has been prepared."""
        assert self.gang is not None
        for ref in self.gang.run():
            on_end = functools.partial(self._on_host_end, self.gang, ref)
            self._agenda.watch(ref, on_end, on_end)

    def start_again(self) -> None:
        self.prepare()
        assert self.gang is not None
        self._execution.store.welcome.remote((self.gang.name, self.gang.actors))
        self.gang.leader.scale_rate.remote(self._rate_factor)
        if self.asked_to_stop:
            self.gang.leader.stop.remote(self.resumable)
        self.run()

    def release(self) -> None:
        if self.gang is not None:
            self._agenda.drop(self.gang.refs)
            self.gang.release()
            self.gang = None

    def _on_host_end(self, gang: Gang, ref: ray.ObjectRef, end: dict[str, Any] | RayError) -> None:
        """What becomes of the other hosts is of no interest once one has ended badly."""
        gang.ended(ref, end)
        if isinstance(end, RayError):
            if gang.cause(self._crash).certain:
                self._on_failure(gang)
            else:  # there is more to hear; if not, then it was that
                self._agenda.later(PEERS_SECONDS, lambda: self._on_failure(gang))
        elif (trained := gang.result()) is not None:
            self._on_end(trained)

    def _on_end(self, trained: dict[str, Any]) -> None:
        self._note(trained.pop("status"))
        self.heed_stop_request()  # a signal to the whole process group reaches the Trainer first
        unfinished = trained["step"] < self._experiment.train.max_steps
        if trained.pop("preempted") and unfinished and not self.asked_to_stop:
            self._on_preemption(trained["step"])
            return
        self.trained = trained
        self._execution.store.close.remote(trained["step"])
        self._on_news()

    def _on_preemption(self, step: int) -> None:
        self.preemptions += 1
        told = f"the Trainer was told to go (SIGTERM), and has saved step {step}; started again"
        self._execution.restarted("Trainer", "preempted", told)
        self.release()
        self.start_again()

    def _on_failure(self, gang: Gang) -> None:
        if gang is not self.gang or gang.result() is not None:
            return  # it has been dealt with
        host, error, _, lost = gang.cause(self._crash)
        of = f" on host {host} of {len(gang.actors)}" if len(gang.actors) > 1 else ""
        if lost:
            self._restart("lost hosts", f"lost its other hosts{of}", line(error), error, None)
        elif isinstance(error, RayTaskError):
            self._on_error(error, of)
        else:  # killed: by hand, by the system, for its memory, with its machine
            crash = self._crash(host)
            failure = Failure(self._safe_step(), crash) if crash else None
            self._restart("crash" if crash else "died", f"died{of}", crash or line(error), error, failure)

    def _crash(self, host: int) -> str:
        return crashes.read(self._execution.logdir, crashes.trainer(host))

    def _on_error(self, error: RayTaskError, of: str) -> None:
        """It lives, and can tell how far it came."""
        assert self.gang is not None
        try:
            status = fetch(self.gang.leader.status.remote(self._num_events))
        except RayError:  # not any more
            status = None
        if status is not None:
            self._note(status)
        # What goes wrong before the first step is not bad luck.
        if isinstance(error.cause, RequestError | TrainingFailed) or self.first_step_time is None:
            self._lose(f"failed{of}", line(error), error)
            return
        failure = Failure(self.said["step"], line(error))
        self._restart("error", f"failed{of} at step {failure.step}", failure.error, error, failure)

    def _restart(self, kind: Cause, what: str, why: str, error: RayError, failure: Failure | None) -> None:
        self.release()
        again = " again" if self.recovery.repeated(failure) else ""
        delay = self.recovery.delay(self._safe_step(), failure)
        if delay is None:
            self._lose(f"{what}{again}", why, error)
            return
        told = f"the Trainer {what}; {started_again(self.recovery.restarts, delay)}: {why}"
        self._execution.restarted("Trainer", kind, told)
        self.said["state"] = "starting"
        self._agenda.later(delay, self.start_again)

    def _lose(self, what: str, why: str, error: RayError) -> None:
        self.said["state"] = "failed"
        self.is_lost = True
        raise_if_request_error(error)
        self._execution.failed(f"the Trainer {what}", error, why)

    def ask_for_news(self) -> None:
        """Unless an answer is still to come, or it has ended."""
        if self.trained is None and self.gang is not None:
            self._look_for_machines()
            if not self._agenda.asked(self._on_status):
                status = self.gang.leader.status.remote(self._num_events)
                self._agenda.watch(status, self._on_status, ignored)

    def _look_for_machines(self) -> None:
        """Says what the Trainer waits for, if there is no machine for it; a run that is to be interrupted does not."""
        if self._has_machines or time.monotonic() - self._asked_for_machines < MACHINES_SECONDS:
            return
        resources, free = self._experiment.resources, ray.available_resources()
        wanted = resources.trainer.amounts
        if all(amount * resources.hosts <= free.get(name, 0.0) for name, amount in wanted.items()):
            return  # it only takes its time
        if self.resumable:
            step, newest = max(checkpoints.steps(self._execution.logdir), default=0), self._safe_step()
            lost = f"; step {newest}, which is in memory, is lost" if newest > step else ""
            self._view.event(f"the Trainer has no machine to write a checkpoint on: {step} is the newest{lost}")
            self.trained = {"step": step}
        elif not self._says_what_it_waits_for:
            asked_for = in_words(wanted, resources.hosts)
            self._view.event(f"the Trainer waits for machines: it asks the cluster for {asked_for}")
        self._says_what_it_waits_for = True

    def _on_status(self, status: dict[str, Any] | None) -> None:
        self._has_machines = True
        if status is None or self.trained is not None:
            return  # not there yet, or its last word has been heard
        self._note(status)
        if self.first_step_time:
            self._on_news()

    def _note(self, status: dict[str, Any]) -> None:
        seen, events = status.pop("events")
        for event in events[self._num_events - seen :]:
            self._view.event(event)
        self._num_events = max(self._num_events, seen + len(events))
        self.said = status
        self.first_step_time = self.first_step_time or status["first_step_time"]


_NOTHING_SAID = dict.fromkeys(TrainerStatus.__annotations__) | {"bad_records": 0, "skipped_updates": 0, "rollbacks": 0}
