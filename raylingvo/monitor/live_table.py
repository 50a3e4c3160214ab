"""The live view as a table of roles, redrawn in place."""

from __future__ import annotations

import sys
import time

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raylingvo.monitor import text
from raylingvo.monitor.live import Clock, View
from raylingvo.monitor.live_plain import trainer_notes
from raylingvo.monitor.status import ReaderStatus, Status, StoreStatus, TrainerStatus

_SECONDS_BETWEEN_FRAMES = 0.1
# From these widths (columns) on there is room for a progress bar and a column of examples/s; for a third metric.
_WIDE = 120
_VERY_WIDE = 140

_STYLES = {
    "training": "green",
    "working": "green",
    "finished": "bold green",
    "failed": "bold red",
    "stopping": "yellow",
}


class TableView(View):
    """A rich Live table. What others print meanwhile (Ray's workers, say) scrolls by above it."""

    def __init__(self, console: Console, *, clock: Clock = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._status: Status | None = None
        self._drawn_at = -float("inf")
        # Drawn from update() only: no thread touches the terminal behind the caller's back. Standard output is left
        # alone where it is a pipe, or its lines would end up on the terminal.
        self._live = Live(
            console=console, auto_refresh=False, redirect_stdout=sys.stdout.isatty(), get_renderable=self._render
        )
        self._live.start()

    def update(self, status: Status) -> None:
        self._status = status
        if self._clock() - self._drawn_at >= _SECONDS_BETWEEN_FRAMES:
            self._drawn_at = self._clock()
            self._live.refresh()

    def event(self, text: str) -> None:
        self._console.print(Text(text))

    def close(self) -> None:
        self._live.stop()  # draws the last frame and shows the cursor

    def _render(self) -> RenderableType:
        return status_table(self._status, self._console.width) if self._status else Text("starting", style="dim")


def status_table(status: Status, width: int) -> RenderableType:
    """One row for each role, between a line about the run and a line about the snapshots.

    `width` is in columns. A lag of `0.3 s/55` is 0.3 s and 55 steps; `done/skip` counts snapshots.
    """
    wide = width >= _WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0), header_style="dim")
    table.add_column("role", overflow="fold")
    table.add_column("state")
    table.add_column("step", no_wrap=True)
    table.add_column("steps/s", justify="right", no_wrap=True)
    if wide:
        table.add_column("examples/s", justify="right", no_wrap=True)
    table.add_column("metrics", ratio=1)
    table.add_column("lag", justify="right", no_wrap=True)
    table.add_column("done/skip", justify="right", no_wrap=True)
    table.add_row(*_trainer_row(status["trainer"], wide))
    for reader in status["readers"]:
        table.add_row(*_reader_row(reader, wide, 3 if width >= _VERY_WIDE else 2))
    return Group(_heading(status), table, _snapshots(status["store"]))


def _heading(status: Status) -> Text:
    line = Text.assemble(
        (status["experiment"], "bold"), f"  run {status['run']}  {text.duration(status['elapsed'])}", overflow="fold"
    )
    if status["dashboard"]:
        line.append(f"  dashboard {status['dashboard']}", style="dim")
    return line


def _trainer_row(trainer: TrainerStatus, wide: bool) -> list[RenderableType]:
    step = Text(f"{trainer['step']}/{trainer['max_steps']}")
    examples = text.rate(trainer["examples_per_second"])
    metrics = [] if trainer["loss"] is None else [f"loss {text.number(trainer['loss'])}"]
    if not wide and trainer["examples_per_second"] is not None:
        metrics.append(f"{examples} ex/s")
    row: list[RenderableType] = [
        Text("Trainer", style="bold"),
        _state(trainer["state"]),
        _with_bar(step, trainer) if wide else step,
        text.rate(trainer["steps_per_second"]),
    ]
    if wide:
        row.append(examples)
    return [*row, _Metrics(metrics, trainer_notes(trainer)), "", ""]


def _with_bar(step: Text, trainer: TrainerStatus) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_row(step, ProgressBar(total=trainer["max_steps"], completed=trainer["step"], width=10))
    return grid


def _reader_row(reader: ReaderStatus, wide: bool, most_metrics: int) -> list[RenderableType]:
    values = reader["metrics"]
    shown = [name for name in text.telling(text.quality(values)) if not name.startswith("num_")][:most_metrics]
    notes = [f"{reader['waiting']} queued"] if reader["waiting"] else []
    if reader["restarts"]:
        notes.append(text.count(reader["restarts"], "restart"))
    if reader["set_aside"]:
        notes.append(f"{reader['set_aside']} set aside")
    lag = [] if reader["lag_seconds"] is None else [text.seconds(reader["lag_seconds"])]
    if lag and reader["lag_steps"] is not None:
        lag.append(str(reader["lag_steps"]))
    return [
        Text(reader["name"], style="bold"),
        _state(reader["state"]),
        "-" if reader["step"] is None else str(reader["step"]),
        *([""] * (2 if wide else 1)),  # the trainer's rates
        _Metrics([f"{name} {text.metric(name, values[name])}" for name in shown], notes),
        "/".join(lag),
        f"{reader['done']}/{reader['skipped']}",
    ]


def _state(state: str) -> Text:
    return Text(state, style=_STYLES.get(state, "dim"))


class _Metrics:
    """Metrics, then notes, as many on a line as fit; rich's own wrapping would part a name from its value."""

    def __init__(self, metrics: list[str], notes: list[str]) -> None:
        self._items = [Text(item) for item in metrics] + [Text(item, style="yellow") for item in notes]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = Text()
        for item in self._items:
            if line and line.cell_len + 2 + item.cell_len > options.max_width:
                yield line
                line = Text()
            line = Text.assemble(line, "  " if line else "", item)
        yield line

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        widths = [item.cell_len for item in self._items] or [0]
        return Measurement(max(widths), sum(widths) + 2 * (len(widths) - 1)).with_maximum(options.max_width)


def _snapshots(store: StoreStatus) -> Text:
    held = f"snapshots held {store['held']}, {text.size(store['bytes'])} of {text.size(store['max_bytes'])}"
    return Text(f"{held}, {store['on_disk']} on disk", style="dim")
