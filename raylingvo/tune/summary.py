"""The result of a sweep in words: what a command prints at its end."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from raylingvo.monitor import text
from raylingvo.tune import record

if TYPE_CHECKING:
    from raylingvo.tune.sweep import SweepResult

_TOP = 5


def format_sweep(result: SweepResult) -> str:
    """The end, the leading trials, and where everything is."""
    sweep = result.sweep
    counts = ", ".join(f"{number} {status}" for status, number in result.to_json()["trials"].items())
    lines = [
        f"{sweep.request['experiment']}: sweep {sweep.status} ({sweep.stop_reason}): {counts or 'no trials'}",
    ]
    short = record.short_keys(sweep.keys)
    for rank, trial in enumerate(record.ranked(sweep)[:_TOP], start=1):
        params = "  ".join(f"{short[key]}={record.value_text(value)}" for key, value in trial.params.items())
        best = trial.best(sweep.mode)
        value = "no value" if best is None else f"{sweep.metric} {text.number(best[1])} @ {best[0]}"
        lines.append(f"  {rank}. trial {trial.number:04d}  {value}  {params}  ({trial.status} at step {trial.step})")
    config = shlex.quote(str(result.logdir / "best" / "config.yaml"))
    if result.best is not None:
        lines.append(f"  best     raylingvo run --config {config} --logdir DIR")
    lines.append(f"  report   {result.logdir / 'report.html'}")
    lines.append(f"  logdir   {result.logdir}")
    return "\n".join(lines)
