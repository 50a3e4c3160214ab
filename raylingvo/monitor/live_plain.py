"""The live view as plain lines, for logs and pipes; in the spirit of Lingvo's progress lines (runners.py:341)."""

from __future__ import annotations

import time
from typing import TextIO

from raylingvo.monitor import text
from raylingvo.monitor.live import Clock, View
from raylingvo.monitor.status import ReaderStatus, Status, TrainerStatus

_SECONDS_BETWEEN_STEPS = 5.0


class PlainView(View):
    """One line when something changed: the trainer's state, its progress every 5 s, each new evaluation, each event."""

    def __init__(self, stream: TextIO, *, clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._introduced = False
        self._trainer: TrainerStatus | None = None  # the newest
        self._shown_step: int | None = None
        self._shown_at = -float("inf")
        self._state = "starting"
        self._readers: dict[str, tuple[int | None, str]] = {}  # name -> (step, state) shown

    def update(self, status: Status) -> None:
        if not self._introduced:
            self._introduced = True
            dashboard = f", dashboard {status['dashboard']}" if status["dashboard"] else ""
            self.event(f"run {status['run']}: {status['experiment']}{dashboard}")
        trainer = self._trainer = status["trainer"]
        if trainer["state"] != self._state:
            self._state = trainer["state"]
            if self._state in ("stopping", "finished", "failed"):
                self._show_step(trainer)
            self.event(f"trainer {self._state}")
        if self._clock() - self._shown_at >= _SECONDS_BETWEEN_STEPS:
            self._show_step(trainer)
        for reader in status["readers"]:
            self._show_reader(reader)

    def event(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        if self._trainer:
            self._show_step(self._trainer)

    def _show_step(self, trainer: TrainerStatus) -> None:
        """A line if there was progress; before the first report there is nothing worth one."""
        if trainer["step"] in (0, self._shown_step):
            return
        self._shown_step = trainer["step"]
        self._shown_at = self._clock()
        self.event("  ".join([f"step {trainer['step']}/{trainer['max_steps']}", *_progress(trainer)]))

    def _show_reader(self, reader: ReaderStatus) -> None:
        step, state = self._readers.get(reader["name"], (None, "starting"))
        self._readers[reader["name"]] = (reader["step"], reader["state"])
        if reader["step"] is not None and reader["step"] != step:
            self.event(_result(reader))
        if reader["state"] == "failed" and state != "failed":
            self.event(f"{reader['name']} failed")


def _progress(trainer: TrainerStatus) -> list[str]:
    parts = []
    if trainer["steps_per_second"] is not None:
        parts.append(f"{text.rate(trainer['steps_per_second'])} steps/s")
    if trainer["examples_per_second"] is not None:
        parts.append(f"{text.rate(trainer['examples_per_second'])} examples/s")
    if trainer["loss"] is not None:
        parts.append(f"loss {text.number(trainer['loss'])}")
    return parts + trainer_notes(trainer)


def _result(reader: ReaderStatus) -> str:
    """`eval test @ 205: accuracy 0.9415 acc5 0.9978 (lag 0.3 s, 0 steps)`."""
    verb = {"evaler": "eval", "decoder": "decode"}[reader["role"]]
    parts = [f"{verb} {reader['dataset']} @ {reader['step']}:", text.metrics_line(reader["metrics"])]
    lag = []
    if reader["lag_seconds"] is not None:
        lag.append(text.seconds(reader["lag_seconds"]))
    if reader["lag_steps"] is not None:
        lag.append(text.count(reader["lag_steps"], "step"))
    if lag:
        parts.append(f"(lag {', '.join(lag)})")
    return " ".join(parts)


def trainer_notes(trainer: TrainerStatus) -> list[str]:
    """What is out of the ordinary: waiting for input, bad records, skipped updates, rollbacks, restarts."""
    notes = []
    # Below a twentieth of the time, waiting for input is not what to look at.
    if (trainer["input_wait_fraction"] or 0.0) >= 0.05:
        notes.append(f"input wait {trainer['input_wait_fraction']:.0%}")
    for number_of, noun in (
        (trainer["bad_records"], "bad record"),
        (trainer["skipped_updates"], "skipped update"),
        (trainer["rollbacks"], "rollback"),
        (trainer["restarts"], "restart"),
        (trainer["preemptions"], "preemption"),
    ):
        if number_of:
            notes.append(text.count(number_of, noun))
    return notes
