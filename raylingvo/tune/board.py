"""A sweep while it goes on: a leaderboard on a terminal, plain lines elsewhere; see monitor/live.py, a run's view."""

from __future__ import annotations

import abc
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TextIO, get_args

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raylingvo.monitor import text
from raylingvo.monitor.live import Clock, Screen, redrawable
from raylingvo.tune.record import Status, Sweep, Trial, best_trial, ranked, short_keys, value_text

_SECONDS_BETWEEN_FRAMES = 0.1
# Trials side by side take the lead from each other at almost every evaluation; a log need not follow each time.
_SECONDS_BETWEEN_LEADERS = 30.0
_TOP = 10
_LONGEST_VALUE = 16  # columns
_ENDED = ("finished", "stopped", "interrupted", "failed")
_STYLES = {"running": "green", "finished": "bold green", "stopped": "yellow", "failed": "bold red"}


class RunningTrial(NamedTuple):
    """How far a trial is that runs; steps_per_second is None before the first report."""

    step: int
    max_steps: int
    steps_per_second: float | None
    phase: str  # starting, compiling, training, ...


class Board(Screen):
    """Shows a sweep while it goes on."""

    @abc.abstractmethod
    def update(self, sweep: Sweep, running: Mapping[int, RunningTrial]) -> None:
        """Takes note of the sweep's state; may be called as often as one likes. running: by the trial's number."""


def open_board(stream: TextIO | None = None, *, clock: Clock = time.time) -> Board:
    """A table that is redrawn in place if `stream` (default: stderr) is a terminal that can, else plain lines.

    clock: Unix seconds.
    """
    out: TextIO = sys.stderr if stream is None else stream
    console = redrawable(out)
    return PlainBoard(out, clock=clock) if console is None else TableBoard(console, clock=clock)


class TableBoard(Board):
    """A rich Live table; what others print meanwhile scrolls by above it."""

    def __init__(self, console: Console, *, clock: Clock = time.time) -> None:
        self._console = console
        self._clock = clock
        self._shown: tuple[Sweep, Mapping[int, RunningTrial]] | None = None
        self._drawn_at = -float("inf")
        # As in live_table.py: drawn from update() only, and standard output is left alone where it is a pipe.
        self._live = Live(
            console=console, auto_refresh=False, redirect_stdout=sys.stdout.isatty(), get_renderable=self._render
        )
        self._live.start()

    def update(self, sweep: Sweep, running: Mapping[int, RunningTrial]) -> None:
        """Draws the table anew, at most every 0.1 s."""
        self._shown = sweep, dict(running)
        # abs: a clock that is set back must not stop the picture.
        if abs(self._clock() - self._drawn_at) >= _SECONDS_BETWEEN_FRAMES:
            self._drawn_at = self._clock()
            self._live.refresh()

    def event(self, text: str) -> None:
        self._console.print(Text(text))

    def close(self) -> None:
        self._live.stop()  # draws the last frame and shows the cursor

    def _render(self) -> RenderableType:
        if self._shown is None:
            return Text("starting", style="dim")
        return leaderboard(*self._shown, self._console.width, self._clock())


def leaderboard(sweep: Sweep, running: Mapping[int, RunningTrial], width: int, now: float) -> RenderableType:
    """The facts of the sweep, its ten best trials and all that run; `width` in columns, `now` in Unix seconds.

    Of the parameters those that differ between trials are shown, as many as there is room for.
    """
    order = ranked(sweep)
    best = [(rank, trial) for rank, trial in enumerate(order, start=1) if trial.best(sweep.mode)]
    shown = best[:_TOP]
    shown += [(rank, t) for rank, t in enumerate(order, start=1) if _runs(t, running) and (rank, t) not in shown]
    rows = [_row(sweep, rank, trial, running.get(trial.number)) for rank, trial in shown]
    names = ["rank", "trial", "status", "step", sweep.metric.rpartition("/")[2], "last", "steps/s"]
    gap = 2 if width >= 100 else 1
    taken = sum(max(len(line[i]) for line in [names, *rows]) + gap for i in range(len(names)))
    keys = _varying(sweep)
    params = _params(keys, [trial for _, trial in shown], width - taken, gap)

    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
    for name in names[:-1]:
        table.add_column(name, justify="left" if name in ("trial", "status") else "right", no_wrap=True)
    for name in params:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    table.add_column(names[-1], justify="right", no_wrap=True)
    for i, ((rank, trial), row) in enumerate(zip(shown, rows, strict=True)):
        cells = [Text(cell) for cell in [*row[:-1], *(column[i] for column in params.values()), row[-1]]]
        cells[2].stylize("green" if _runs(trial, running) else _STYLES.get(trial.status, "dim"))
        table.add_row(*cells, style="bold" if rank == 1 and trial.status != "failed" else None)
    hidden = len(keys) - len(params)
    note = [Text(f"not shown for want of room: {text.count(hidden, 'parameter')}", style="dim")] if hidden else []
    return Group(*_heading(sweep, now), *([table, *note] if shown else []))


def _runs(trial: Trial, running: Mapping[int, RunningTrial]) -> bool:
    return trial.status == "running" or trial.number in running


def _row(sweep: Sweep, rank: int, trial: Trial, now: RunningTrial | None) -> list[str]:
    best = trial.best(sweep.mode)
    return [
        str(rank) if best else "-",
        f"{trial.number:04d}",
        now.phase if now else trial.status,
        f"{now.step}/{now.max_steps}" if now else str(trial.step),
        text.number(best[1]) if best else "-",
        text.number(trial.last[1]) if trial.last else "-",
        text.rate(now.steps_per_second) if now else "",
    ]


def _varying(sweep: Sweep) -> list[str]:
    """The parameters that differ between trials; all of them if none does."""
    values = {key: {repr(trial.params.get(key)) for trial in sweep.trials} for key in sweep.keys}
    return [key for key in values if len(values[key]) > 1] or sweep.keys


def _params(keys: Sequence[str], trials: Sequence[Trial], room: int, gap: int) -> dict[str, list[str]]:
    """Short key -> a cell for each trial: the first keys that fit into `room` columns."""
    columns = {}
    for key, name in short_keys(keys).items():
        cells = [_shortened(value_text(trial.params[key])) if key in trial.params else "" for trial in trials]
        room -= max(map(len, [name, *cells])) + gap
        if room < 0:
            break
        columns[name] = cells
    return columns


def _shortened(words: str) -> str:
    return words if len(words) <= _LONGEST_VALUE else f"{words[: _LONGEST_VALUE - 1]}…"


def _heading(sweep: Sweep, now: float) -> list[Text]:
    elapsed = text.duration(max(0.0, (sweep.ended or now) - sweep.started))
    state = "" if sweep.status == "running" else f"  {sweep.status}"
    facts = Text.assemble((str(sweep.request["experiment"]), "bold"), f"  {_wanted(sweep)}  {elapsed}{state}")
    best = best_trial(sweep)
    return [
        Text.assemble(facts, overflow="fold"),
        Text(f"trials: {_counts(sweep) or 'none yet'}", overflow="fold"),
        Text(f"best: {_named(sweep, best)}" if best else "best: none yet", overflow="fold"),
    ]


def _wanted(sweep: Sweep) -> str:
    """`min test/loss  scheduler asha  search random`."""
    request = sweep.request
    how = [f"{name} {request[name]}" for name in ("scheduler", "search") if request.get(name) is not None]
    return "  ".join([f"{sweep.mode} {sweep.metric}", *how])


def _counts(sweep: Sweep) -> str:
    """`3 finished, 2 running, 1 failed of 20`."""
    counts = Counter(trial.status for trial in sweep.trials)
    words = ", ".join(f"{counts[status]} {status}" for status in get_args(Status) if counts[status])
    samples = sweep.request.get("samples")
    more = isinstance(samples, int) and samples > len(sweep.trials)
    return f"{words} of {samples}" if words and more else words


def _named(sweep: Sweep, trial: Trial) -> str:
    """`trial 0003, loss 0.1234 @ 900: learner.lr=0.01`."""
    return f"trial {trial.number:04d}, {_best(sweep, trial)}: {_assignments(trial.params)}"


def _best(sweep: Sweep, trial: Trial) -> str:
    best = trial.best(sweep.mode)
    name = sweep.metric.rpartition("/")[2]
    return f"{name} {text.number(best[1])} @ {best[0]}" if best else f"no finite {name}"


def _assignments(params: Mapping[str, object]) -> str:
    return " ".join(f"{key}={value_text(value)}" for key, value in params.items()) or "no parameters"


class PlainBoard(Board):
    """A line when a trial starts, takes over another's state or ends, and when another one leads."""

    def __init__(self, stream: TextIO, *, clock: Clock = time.time) -> None:
        self._stream = stream
        self._clock = clock
        self._sweep: Sweep | None = None  # the newest
        self._shown: dict[int, Trial] = {}
        self._leader: int | None = None
        self._leader_at = -float("inf")
        self._closed = False

    def update(self, sweep: Sweep, running: Mapping[int, RunningTrial]) -> None:
        """Says what has changed since the last time; who leads, every 30 s at most or when a trial has ended."""
        if self._sweep is None:
            self._introduce(sweep)
        self._sweep = sweep
        ended = False
        for trial in sweep.trials:
            if self._shown.get(trial.number) != trial:
                ended |= self._show(sweep, trial)
        self._show_leader(sweep, at_once=ended)

    def event(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Says how the sweep has ended and which trial is the best, once."""
        if self._sweep is None or self._closed:
            return
        self._closed = True
        sweep, best = self._sweep, best_trial(self._sweep)
        reason = f" ({sweep.stop_reason})" if sweep.stop_reason else ""
        took = text.duration(max(0.0, (sweep.ended or self._clock()) - sweep.started))
        self.event(f"sweep {sweep.status} after {took}{reason}: {_counts(sweep) or 'no trials'}")
        self.event(f"best: {_named(sweep, best) if best else 'none'}")

    def _introduce(self, sweep: Sweep) -> None:
        self.event(f"sweep: {sweep.request['experiment']}  {_wanted(sweep)}")
        before = {trial.number: trial for trial in sweep.trials if trial.status in _ENDED}
        if before:  # it goes on
            self.event(f"trials from before: {_counts(sweep)}")
            self._shown = before

    def _show(self, sweep: Sweep, trial: Trial) -> bool:
        """Says what changed, and returns whether the trial has ended since."""
        shown = self._shown.get(trial.number)
        self._shown[trial.number] = trial
        name = f"trial {trial.number:04d}"
        was, now = shown.status if shown else "pending", trial.status
        if was == "pending" != now:
            self.event(f"{name} started: {_assignments(trial.params)}")
        elif was in _ENDED and now not in _ENDED:
            self.event(f"{name} goes on from step {trial.step}")
        for change in trial.changes[len(shown.changes) if shown else 0 :]:
            source = f"trial {change['from_trial']:04d}"
            self.event(f"{name} continues {source} at step {change['step']}: {_assignments(change['params'])}")
        if now not in _ENDED or was == now:
            return False
        reason = f" ({trial.stop_reason})" if trial.stop_reason else ""
        error = f": {trial.error}" if trial.error else ""
        best = f"{'best ' if trial.best(sweep.mode) else ''}{_best(sweep, trial)}"
        self.event(f"{name} {now} at step {trial.step}{reason}, {best}{error}")
        return True

    def _show_leader(self, sweep: Sweep, at_once: bool) -> None:
        best = best_trial(sweep)
        waited = abs(self._clock() - self._leader_at) >= _SECONDS_BETWEEN_LEADERS
        if best is None or best.number == self._leader or not (waited or at_once):
            return
        self._leader, self._leader_at = best.number, self._clock()
        self.event(f"new best: trial {best.number:04d}, {_best(sweep, best)}")
