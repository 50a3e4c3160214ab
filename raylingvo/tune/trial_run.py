"""One trial while it runs: a run in a thread of this process, what it has to report, and how it ends."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO, cast

from raylingvo import config
from raylingvo.actors.calls import PAYLOAD_SECONDS, fetch
from raylingvo.actors.cluster import Cluster
from raylingvo.actors.driver import LOG, Order
from raylingvo.actors.run import RunFailed, run
from raylingvo.actors.within import Command, Within
from raylingvo.actors.workers import Workers
from raylingvo.errors import RequestError, UnknownMetric
from raylingvo.experiment import Experiment
from raylingvo.monitor.live import View
from raylingvo.monitor.live_plain import PlainView
from raylingvo.monitor.log_file import LogFile
from raylingvo.monitor.status import Status
from raylingvo.training import checkpoints
from raylingvo.tune.hub import Greeting

_TELL_SECONDS = 1.0  # how often a trial tells how far it is


@dataclasses.dataclass(frozen=True, kw_only=True)
class Home:
    """What all trials of a sweep have in common: plain data."""

    order: Order  # with the experiment that trials vary, and the sweep's folder as its logdir
    cluster: Cluster
    hub: Any
    metric: str  # DATASET/NAME
    mode: str
    shares_states: bool  # trials take each other's weights
    runs_beside: int  # how many trials run at once, less one
    environment: Mapping[str, str]  # of the roles
    data: Sequence[Any]  # a reference to each (dataset, what it opens to) that is read once for all


class Report(NamedTuple):
    """An evaluation, or the end."""

    step: int
    value: float | None
    end: End | None = None


class End(NamedTuple):
    """How a trial has ended, or why it does not go on now."""

    status: Literal["finished", "interrupted", "failed"]
    step: int
    reason: str
    no_metric: bool = False  # since what the sweep goes by is not reported


class TrialRun:
    """Runs trial `number` of a sweep in its folder, from where it is there. `next` gives what is to be said of it."""

    def __init__(
        self, home: Home, base: Experiment, workers: Workers, actor: Any, number: int, params: Mapping[str, Any]
    ):
        """actor: the TrialActor that this is in."""
        self._home = home
        self._base = base
        self._workers = workers
        self._actor = actor
        self._params = params
        self.number = number
        self.logdir = Path(home.order.logdir) / "trials" / f"{number:04d}"
        self._reports: queue.Queue[Report] = queue.Queue()
        self._end: End | None = None
        self._thread = threading.Thread(target=self._drive, name=f"trial {number}", daemon=True)
        self._thread.start()

    def next(self) -> Report:
        """Waits for the next report. It is not given again when the trial goes on after a pause."""
        report = self._reports.get()
        if report.value is not None:
            self._home.hub.tell.remote(self.number, reported=report.step)
        return report

    def report(self, step: int, value: float) -> None:
        """There is an evaluation. For the thread of the run."""
        self._reports.put(Report(step, value))

    def pause(self, reason: str) -> End:
        """Finishes the step, and waits until all is saved. It may also have ended before it hears."""
        if self._thread.is_alive():
            self._home.hub.command.remote(self.number, Command("pause", reason=reason))
        self.wait()
        assert self._end is not None
        return self._end

    def wait(self) -> None:
        """Until the run has ended."""
        self._thread.join()

    def _drive(self) -> None:
        started = time.monotonic()
        hub = self._home.hub
        try:
            greeting = fetch(hub.begin.remote(self.number, self._actor))
            if greeting.interrupted is not None:
                end = End("interrupted", -1, greeting.interrupted)
            else:
                end = self._run(greeting)
        except RunFailed as failure:
            self._log(failure.trace, str(failure))
            end = End("failed", failure.result["step"], str(failure))
        except RequestError as error:
            end = End("failed", 0, str(error), no_metric=isinstance(error, UnknownMetric))
        except BaseException as error:  # there is nobody above who would tell anybody
            self._log(traceback.format_exc())
            end = End("failed", 0, f"{type(error).__name__}: {error}")
        self._end = end
        hub.tell.remote(self.number, ended=tuple(end), seconds=time.monotonic() - started)
        self._reports.put(Report(end.step, None, end))

    def _run(self, greeting: Greeting) -> End:
        home, reported = self._home, greeting.reported
        experiment = config.override(self._base, self._params)
        for step, value in checkpoints.read_scores(self.logdir, home.metric).items():
            if step > reported:
                self.report(step, value)
                reported = step
        view = _TrialView(self, home, reported)
        result = run(
            experiment,
            self.logdir,
            view=view,
            stop_request=lambda: None,
            within=Within(
                cluster=home.cluster,
                begun=lambda: view.begin(self.logdir),
                workers=self._workers,
                commands=lambda: home.hub.next.remote(self.number, greeting.life),
                runs_beside=home.runs_beside,
                environment=home.environment,
                data=home.data,
                opened=lambda store: home.hub.here.remote(self.number, store),
                closing=self._leave,
            ),
        )
        return End(result["status"], result["step"], result["stop_reason"])

    def _leave(self) -> None:
        """Others may want the weights: the hub copies them before their owner ends."""
        leaves = self._home.hub.leaves.remote(self.number, keep_state=self._home.shares_states)
        if self._home.shares_states:
            fetch(leaves, PAYLOAD_SECONDS)

    def _log(self, *texts: str) -> None:
        log = PlainView(cast(TextIO, LogFile(self.logdir / LOG)))
        for text in filter(None, texts):
            log.event(text)


class _TrialView(View):
    """Passes on what a run says of itself: evaluations to the sweep, the state to its leaderboard, all to a log."""

    def __init__(self, trial: TrialRun, home: Home, reported: int):
        self._trial = trial
        self._hub = home.hub
        self._dataset, _, self._name = home.metric.partition("/")
        self._reported = reported
        self._told = 0.0
        self._adopted: Any = None  # what has been told
        self._log: PlainView | None = None

    def begin(self, logdir: Path) -> None:
        """From now on there is a log."""
        self._log = PlainView(cast(TextIO, LogFile(logdir / LOG)))

    def update(self, status: Status) -> None:
        if self._log is not None:
            self._log.update(status)
        for reader in status["readers"]:
            step, value = reader["step"], reader["metrics"].get(self._name)
            if reader["dataset"] == self._dataset and value is not None and step is not None and step > self._reported:
                self._reported = step
                self._trial.report(step, value)
        adopted = status["trainer"]["adopted"]
        if adopted is not None and adopted != self._adopted:
            self._adopted = adopted
            self._hub.tell.remote(self._trial.number, adopted=adopted)
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self._told = time.monotonic()
            trainer = status["trainer"]
            self._hub.tell.remote(
                self._trial.number,
                phase=trainer["state"],
                step=trainer["step"],
                steps_per_second=trainer["steps_per_second"],
            )

    def event(self, text: str) -> None:
        if self._log is not None:
            self._log.event(text)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
