"""One execution of an experiment: what those who watch over its roles share, and how they tell of bad ends."""

from __future__ import annotations

from pathlib import Path

from ray.exceptions import RayError
from rich.text import Text

from raylingvo.actors import remote
from raylingvo.actors.agenda import Agenda
from raylingvo.actors.cluster import object_store_bytes
from raylingvo.actors.metrics import RunMetrics
from raylingvo.actors.within import Within
from raylingvo.errors import RequestError
from raylingvo.experiment import Experiment
from raylingvo.monitor.exported import Cause
from raylingvo.monitor.live import View


class Execution:
    """Its SnapshotStore starts with it."""

    def __init__(self, experiment: Experiment, job: remote.Job, logdir: Path, view: View, within: Within):
        self.experiment = experiment
        self.job = job
        self.logdir = logdir
        self.view = view
        self.within = within
        self.agenda = Agenda()
        self.metrics = RunMetrics(job.run, experiment.train.dataset, logdir)
        self.failures: list[tuple[str, str]] = []  # (message, traceback)
        snapshots, resources = experiment.train.snapshots, experiment.resources.store
        # Beyond half of Ray's own store, Ray would move objects to disk before we do. It may be on any machine.
        max_bytes = min(snapshots.max_bytes, int(object_store_bytes() / 2 / (within.runs_beside + 1)))
        self.store = remote.start_store(job, resources, max_bytes=max_bytes, max_count=snapshots.max_count)

    def restarted(self, role: str, kind: Cause, message: str) -> None:
        """Tells of it. role: as the live view has it. kind: why, for Prometheus."""
        self.metrics.restarted(role, kind)
        self.view.event(message)

    def failed(self, what: str, error: RayError, why: str = "") -> None:
        """It goes on as far as it can, and will have failed. why: instead of what the error says."""
        message = f"{what}: {why or line(error)}"
        self.view.event(message)
        self.failures.append((message, _plain(str(error))))


def started_again(restarts: int, delay: float) -> str:
    """restarts: of the role, with the one that comes in `delay` seconds."""
    return f"started again ({restarts}){f' in {delay:g} s' if delay else ''}"


def cause(error: RayError) -> BaseException:
    """What was raised in the role, if it was."""
    return getattr(error, "cause", None) or error


def raise_if_request_error(error: RayError) -> None:
    """Raises the RequestError that a role raised, if that is what ended it."""
    if isinstance(raised := cause(error), RequestError):
        raise raised from None


def line(error: RayError) -> str:
    """The cause in one line."""
    lines = _plain(str(cause(error))).strip().splitlines() or [""]
    return f"{type(cause(error)).__name__}: {lines[0]}"


def _plain(coloured: str) -> str:
    """Without the colours that Ray puts into tracebacks."""
    return Text.from_ansi(coloured).plain
