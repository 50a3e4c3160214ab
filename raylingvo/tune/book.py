"""The book of a sweep while it goes on: what is known of each trial, and its files in the sweep's folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raylingvo import config
from raylingvo.actors.logdir import read_experiment
from raylingvo.errors import RequestError
from raylingvo.monitor.atomic import write_atomically
from raylingvo.tune import record, report
from raylingvo.tune.board import Board, RunningTrial
from raylingvo.tune.record import Status, Sweep, SweepStatus, Trial
from raylingvo.tune.request import Request

_SAVE_SECONDS = 1.0  # the record is behind by no more, while nothing ends
EXPERIMENT = "config.yaml"
BEST = Path("best", "config.yaml")

# What may differ when a sweep goes on: how it runs, and how many trials it has.
_FREE = {"samples", "concurrency", "max_failures", "resources"}


class Book:
    """Trials by number. Changes are on disk at once if a trial begins or ends, else within a second."""

    def __init__(self, request: Request, total: int, directory: Path, board: Board):
        """total: the number of trials that there are to be.

        Raises RequestError if the folder has something else, another sweep, or a damaged record.
        """
        self._total = total
        self.request = request
        self.directory = directory
        self._board = board
        earlier = self._read()
        self.trials: dict[int, Trial] = {trial.number: trial for trial in earlier.trials} if earlier else {}
        self.is_new = earlier is None
        self._started = earlier.started if earlier else time.time()
        self._ended = earlier.ended if earlier else None
        self.status: SweepStatus = earlier.status if earlier else "running"
        self.stop_reason: str | None = earlier.stop_reason if earlier else None
        self._running: dict[int, RunningTrial] = {}
        self._best: tuple[int, float] | None = None
        self._saved = 0.0

    def _read(self) -> Sweep | None:
        if not (self.directory / record.RECORD).exists():
            if (self.directory / "run.json").exists():
                raise RequestError(f"--logdir {self.directory} is the logdir of a run, not of a sweep")
            return None
        earlier = record.read(self.directory)
        asked = self.request.to_json()
        differences = [
            f"{key}: {earlier.request.get(key)} -> {asked[key]}"
            for key in asked
            # The order of grids is the order of trials.
            if key not in _FREE and json.dumps(earlier.request.get(key)) != json.dumps(asked[key])
        ]
        there = dataclasses.replace(read_experiment(self.directory), resources=self.request.base.resources)
        differences += config.diff(there, self.request.base)
        if differences:
            raise RequestError(
                f"--logdir {self.directory} belongs to another sweep; use another logdir, or undo:\n"
                + "\n".join(f"  {line}" for line in differences)
            )
        return earlier

    def open(self) -> None:
        """The request has proved right: writes what is known."""
        self.status, self.stop_reason, self._ended = "running", None, None
        write_atomically(self.directory / EXPERIMENT, config.dump(self.request.base))
        self.save()

    def sweep(self) -> Sweep:
        """All that is known, as the record has it; the trials by number."""
        return Sweep(
            request=self.request.to_json(),
            status=self.status,
            started=self._started,
            ended=self._ended,
            stop_reason=self.stop_reason,
            trials=tuple(trial for _, trial in sorted(self.trials.items())),
        )

    def update(self, number: int, **fields: Any) -> Trial:
        """Changes fields of a trial, and returns it as it now is. Raises KeyError for a trial that there is not."""
        self.trials[number] = dataclasses.replace(self.trials[number], **fields)
        return self.trials[number]

    def count(self, status: Status) -> int:
        """How many trials have this status."""
        return sum(trial.status == status for trial in self.trials.values())

    def outcome(self) -> tuple[SweepStatus, str]:
        """How a sweep has ended of which all trials have."""
        if self.trials and self.count("failed") == len(self.trials):
            last = max(self.trials)
            return "failed", f"all trials have failed, the last of: {self.trials[last].error}"
        return "finished", "all trials have ended"

    def all_ended(self) -> bool:
        """Whether nothing is left to be done."""
        there = (self.trials.get(number) for number in range(self._total))
        return all(trial is not None and trial.status in record.ENDED for trial in there)

    def add(self, number: int, params: Mapping[str, Any]) -> None:
        """A trial, pending; one that is there already stays as it is."""
        self.trials.setdefault(number, Trial(number=number, params=dict(params)))

    def value(self, number: int, step: int, value: float) -> None:
        """An evaluation; one that is known already changes nothing."""
        trial = self.trials[number]
        if trial.last is None or step > trial.last[0]:
            self.update(number, history=(*trial.history, (step, value)), step=max(step, trial.step))

    def running(self, number: int, **news: Any) -> None:
        """How far a trial is that runs; news: step, steps_per_second and phase of a RunningTrial."""
        self._running[number] = RunningTrial(
            step=news["step"],
            max_steps=self.request.max_steps,
            steps_per_second=news["steps_per_second"],
            phase=news["phase"],
        )

    def not_running(self, number: int) -> None:
        """The opposite of `running`: the board shows its status alone."""
        self._running.pop(number, None)

    def show(self) -> None:
        """Lets the board have the state; at most every second it is saved, too. To be called often."""
        if time.monotonic() - self._saved >= _SAVE_SECONDS:
            self.save()
        self._board.update(self.sweep(), self._running)

    def event(self, text: str) -> None:
        """Shows a one-line happening."""
        self._board.event(text)

    def save(self) -> None:
        """Writes the record, and best/config.yaml if there is a new best value. Raises OSError, naming the file."""
        self._saved = time.monotonic()
        sweep = self.sweep()
        record.write(sweep, self.directory)
        best = record.best_trial(sweep)
        if best is not None and (found := best.best(sweep.mode)) is not None and (best.number, found[1]) != self._best:
            self._best = best.number, found[1]
            (self.directory / BEST).parent.mkdir(exist_ok=True)
            write_atomically(
                self.directory / BEST, config.dump(config.override(self.request.base, best.params_at(found[0])))
            )

    def forget(self) -> None:
        """Of a sweep that should not have begun there is nothing in the folder, but for what others have put there."""
        for name in (record.RECORD, record.LEADERBOARD, EXPERIMENT):
            (self.directory / name).unlink(missing_ok=True)
        shutil.rmtree(self.directory / "trials", ignore_errors=True)

    def note(self, status: SweepStatus, reason: str) -> None:
        """The sweep has ended for now, not as it should."""
        self.status, self.stop_reason, self._ended = status, reason, time.time()
        self.save()

    def close(self, status: SweepStatus, reason: str) -> Sweep:
        """The sweep has ended for now: writes all, and draws it."""
        self.note(status, reason)
        sweep = self.sweep()
        self._board.update(sweep, self._running)
        report.write(sweep, self.directory)
        return sweep
