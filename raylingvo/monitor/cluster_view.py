"""The runs in a cluster: what `raylingvo status` prints, for people and for scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from raylingvo.monitor import text
from raylingvo.monitor.exported import BY_NAME, Sample
from raylingvo.monitor.live_table import status_table
from raylingvo.monitor.metrics_log import json_tree
from raylingvo.monitor.runs_view import print_table
from raylingvo.monitor.status import Status
from raylingvo.monitor.summary import format_summary


def row(run: str, about: Mapping[str, Any] | None) -> dict[str, Any]:
    """One JSON-able row a run; what is not known is None.

    about: what the driver says, {"experiment", "logdir", "status": Status or None}; None if it does not answer.
    Returns {"run", "experiment", "state", "step", "max_steps", "loss", "steps_per_second", "restarts", "logdir"}.
    """
    status: Status | None = about["status"] if about else None
    trainer: Mapping[str, Any] = status["trainer"] if status else {}
    known = {name: trainer.get(name) for name in ("step", "max_steps", "loss", "steps_per_second")}
    restarts = status and sum(role["restarts"] for role in (status["trainer"], *status["readers"]))
    return json_tree(
        {
            "run": run,
            "experiment": about and about["experiment"],
            "state": "no answer" if about is None else _state(status),
            **known,
            "restarts": restarts,
            "logdir": about and about["logdir"],
        }
    )


def described(about: Mapping[str, Any]) -> dict[str, Any]:
    """All about one run, JSON-able: "run", "experiment", "status", "state", "logdir" and, if there is one, its Status.

    about: as for `row`, with "run".
    """
    status: Status | None = about["status"]
    known = {name: about[name] for name in ("run", "experiment", "logdir")}
    shown = {**known, **(status or {}), "status": "running", "state": _state(status)}
    if "samples" in shown:
        shown["samples"] = [sample._asdict() for sample in map(Sample._make, shown["samples"])]
    return json_tree(shown)


def print_runs(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints a table of rows, or that there are none."""
    if not rows:
        print("there are no runs in this cluster")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("run", "experiment", "state", "step", "loss", "steps/s", "restarts", "logdir"):
        table.add_column(column, overflow="fold")  # a name that is cut short cannot be copied
    for row in rows:
        cells = (
            row["experiment"] or "-",
            row["state"],
            "-" if row["step"] is None else f"{row['step']}/{row['max_steps']}",
            text.number(row["loss"]),
            text.rate(row["steps_per_second"]),
            row["restarts"] or 0,
            row["logdir"] or "-",
        )
        table.add_row(Text(row["run"], style="bold"), *(Text(str(cell)) for cell in cells))
    print_table(table)


def print_run(shown: Mapping[str, Any]) -> None:
    """Prints what is `described`, as the live table does, or a result."""
    if "trainer" in shown:
        width = Console().width
        parts = [status_table(shown, width), Text(f"logdir {shown['logdir']}")]  # type: ignore[arg-type]
        print_table(Group(*parts, *(_metrics(shown["samples"]) if shown.get("samples") else ())))
    elif "train" in shown:
        print(format_summary(shown))
    else:
        print(f"{shown['experiment']} (run {shown['run']}): {shown['state']}\n  logdir  {shown['logdir']}")


def _metrics(samples: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """What Prometheus is told, in the order of its table: a line for each metric, a column for each role."""
    roles = list(dict.fromkeys((sample["role"], sample["dataset"]) for sample in samples))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("metric", overflow="fold")
    for role, dataset in roles:
        of = dataset if role in ("evaler", "decoder") else ""
        table.add_column(f"{role}({of})" if of else role, justify="right", overflow="fold")
    values = {(sample["name"], sample["role"], sample["dataset"]): sample["value"] for sample in samples}
    for name in BY_NAME:
        cells = [values.get((name, *role)) for role in roles]
        if any(cell is not None for cell in cells):
            table.add_row(name, *("" if cell is None else _short(cell) for cell in cells))
    return [Text(), table]


def _short(value: float) -> str:
    return f"{value:.0f}" if value.is_integer() else text.number(value)


def _state(status: Status | None) -> str:
    """The Trainer's; but the run is not over when training is."""
    if status is None:
        return "starting"
    state = status["trainer"]["state"]
    return "evaluating" if state == "finished" else state
