"""Tables of what runs.py reads."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from raylingvo.monitor import text

# Columns; wider than any table, so that a file or a pipe gets whole lines.
_UNLIMITED = 100_000


def print_table(table: RenderableType, stream: TextIO | None = None) -> None:
    """Prints to `stream` (default: stdout), in the terminal's width, or in full if it is none."""
    out: TextIO = sys.stdout if stream is None else stream
    Console(file=out, width=None if out.isatty() else _UNLIMITED, highlight=False).print(table)


def list_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """`runs.list_rows` as a table: one line a run."""
    table = _table("run", "experiment", "status", "step", "started", "took", "metrics", "logdir")
    for row in rows:
        took = "-" if row["seconds"] is None else text.duration(row["seconds"])
        table.add_row(
            Text(row["run"], style="bold"),
            _plain(row["experiment"]),
            _status(row["status"]),
            _plain(row["step"]),
            _when(row["started"]),
            took,
            _headline(row),
            _plain(row["logdir"]),
        )
    return table


def show_table(shown: Mapping[str, Any]) -> RenderableType:
    """`runs.show` as the facts of a run and a table of its metrics."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    for key, value in shown.items():
        if key not in ("metrics", "result"):  # the result is the last of the metrics once more
            facts.add_row(Text(key, style="dim"), _status(value) if key == "status" else _fact(key, value))
    metrics = _table("metrics of", "metric", "last", "at step", "best", "at step")
    for place, values in shown["metrics"].items():
        for i, name in enumerate(text.telling(values)):
            metrics.add_row(place if i == 0 else "", name, *_extremes(name, values[name]))
    return Group(facts, Text(), metrics) if shown["metrics"] else facts


def compare_table(compared: Mapping[str, Any]) -> RenderableType:
    """`runs.compare` as two tables: what differs in the configs, and the metrics, a column for each run."""
    names = list(compared["runs"])
    config = _table("config", *names)
    for key, values in compared["config"].items():
        config.add_row(
            key, *(_plain(values[name]) if name in values else Text("absent", style="dim") for name in names)
        )
    if not compared["config"]:
        config.add_row(Text("the same", style="dim"))
    metrics = _table("last (best @ step)", *names)
    for key, values in _by_place(compared["metrics"]):
        metric = key.partition("/")[2]
        metrics.add_row(key, *(_last_and_best(metric, values.get(name)) for name in names))
    return Group(config, Text(), metrics)


def _by_place(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Items of `folder/metric` keys: folders as they come, in each the most telling metric first."""
    places = list(dict.fromkeys(key.partition("/")[0] for key in metrics))
    telling = text.telling({key.partition("/")[2] for key in metrics})

    def rank(key: str) -> tuple[int, int]:
        place, _, metric = key.partition("/")
        return places.index(place), telling.index(metric)

    return [(key, metrics[key]) for key in sorted(metrics, key=rank)]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        # A path or a name that is cut short cannot be copied: fold it.
        table.add_column(column, overflow="fold")
    return table


def _plain(value: Any) -> Text:
    return Text("-" if value is None else str(value))


def _status(status: Any) -> Text:
    return Text(str(status), style={"running": "green", "failed": "bold red", "died": "bold red"}.get(str(status), ""))


def _fact(key: str, value: Any) -> RenderableType:
    if key in ("started", "ended"):
        return _when(value)
    if isinstance(value, Mapping):
        return Text("  ".join(f"{k} {v}" for k, v in value.items()))
    if isinstance(value, list):
        return Text(" ".join(map(str, value)))
    return _plain(value)


def _when(seconds: float | None) -> Text:
    """Unix seconds in local time."""
    return _plain(seconds and datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S"))


def _headline(row: Mapping[str, Any]) -> Text:
    """The training loss, and the most telling metric of every dataset."""
    parts = []
    if "loss" in row["train"]:
        parts.append(f"loss {text.number(row['train']['loss'])}")
    for dataset, metrics in {**row["decode"], **row["eval"]}.items():
        names = text.telling(metrics.keys() - {"step"})[:1]
        parts += [f"{dataset} {name} {text.metric(name, metrics[name])}" for name in names]
    return Text("  ".join(parts) or "-")


def _extremes(name: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    last = (text.metric(name, values["last"]), str(values["step"]))
    return (
        *last,
        *(("", "") if values["best"] is None else (text.metric(name, values["best"]), str(values["best_step"]))),
    )


def _last_and_best(name: str, values: Mapping[str, Any] | None) -> Text:
    if values is None:
        return Text("-")
    line = Text(text.metric(name, values["last"]))
    if values["best"] is not None:
        line.append(f"  ({text.metric(name, values['best'])} @ {values['best_step']})", style="dim")
    return line
