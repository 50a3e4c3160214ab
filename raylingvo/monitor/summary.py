"""The last words of a run: its result as a few lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raylingvo.monitor import text


def format_summary(result: Mapping[str, Any]) -> str:
    """The result of a run (`raylingvo run --json`, interfaces.md) for people: a line for each dataset.

    result: `run, experiment, status, step, train, eval, decode`, and, shown when there and not None, `stop_reason,
    steps_per_second, examples_per_second, first_step_seconds, logdir`.
    """
    reason = f" ({result['stop_reason']})" if result.get("stop_reason") else ""
    rows = []
    if result["train"]:
        rows.append((f"train @ {result['train']['step']}", text.metrics_line(result["train"])))
    for verb in ("eval", "decode"):
        for dataset, metrics in result[verb].items():
            if metrics:  # a run that stopped early may have none
                rows.append((f"{verb} {dataset} @ {metrics['step']}", text.metrics_line(metrics)))
    if speed := _speed(result):
        rows.append(("speed", speed))
    if result.get("logdir"):
        rows.append(("logdir", str(result["logdir"])))
    width = max((len(name) for name, _ in rows), default=0)
    heading = f"{result['experiment']} (run {result['run']}): {result['status']} at step {result['step']}{reason}"
    return "\n".join([heading, *(f"  {name:{width}}  {value}" for name, value in rows)])


def _speed(result: Mapping[str, Any]) -> str:
    parts = []
    if (steps := result.get("steps_per_second")) is not None:
        parts.append(f"{text.rate(steps)} steps/s")
    if (examples := result.get("examples_per_second")) is not None:
        parts.append(f"{text.rate(examples)} examples/s")
    if (first := result.get("first_step_seconds")) is not None:
        parts.append(f"first step after {text.seconds(first)}")
    return ", ".join(parts)
