"""Numbers for people: short, aligned, with a unit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

# What a reader looks for first, most telling first; all others follow by name, and counts come last.
_HEADLINES = (
    "accuracy", "correct_top1", "sacrebleu", "corpus_bleu", "bleu", "chrf", "wer", "ap", "loss", "acc5", "correct_top5",
    "log_pplx",
)  # fmt: skip

# How a report came about, not how good the model is; the views show these in places of their own.
_SPEED = (
    "examples_per_second",
    "handover_seconds",
    "input_wait_fraction",
    "lag_seconds",
    "snapshot_seconds",
    "steps_per_second",
)


def number(value: float | None) -> str:
    """About four significant digits; "-" for None, which is how a log writes a value that is not finite."""
    if value is None:
        return "-"
    size = abs(value)
    if not math.isfinite(value):
        return str(value)
    if size >= 1e6 or 0 < size < 1e-2:
        return f"{value:.3g}"
    if size >= 10:
        return f"{value:.0f}" if size >= 1000 else f"{value:.2f}"
    return f"{value:.4f}"


def metric(name: str, value: float | None) -> str:
    """A metric's value; names that start with `num_` are counts (see models/task.py)."""
    return f"{value:.0f}" if name.startswith("num_") and value is not None else number(value)


def telling(metrics: Iterable[str]) -> list[str]:
    """The metrics' names, the most telling first."""
    rank = {name: i for i, name in enumerate(_HEADLINES)}
    return sorted(metrics, key=lambda name: (name.startswith("num_"), rank.get(name, len(rank)), name))


def metrics_line(metrics: Mapping[str, float | None]) -> str:
    """`accuracy 0.9415  loss 0.2077 ...`, without what only tells the speed."""
    return "  ".join(f"{name} {metric(name, metrics[name])}" for name in telling(quality(metrics)))


def quality(metrics: Iterable[str]) -> list[str]:
    """The names of those metrics that say how good the model is."""
    return [name for name in metrics if name not in (*_SPEED, "step", "time")]


def rate(value: float | None) -> str:
    """Something a second: 11.6, 2980."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def seconds(value: float) -> str:
    """A short wait: 0.3 s, 12 s."""
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"


def duration(value: float) -> str:
    """A run's length: 0:01:23, 2 days 3:04:05."""
    days, rest = divmod(int(value), 86400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days} day{'s' * (days > 1)} {clock}" if days else clock


def size(value: float) -> str:
    """Bytes: 3.1 MB, 2.1 GB."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(int(math.log10(max(value, 1))) // 3, len(units) - 1)
    scaled = value / 1000**power
    return f"{scaled:.{0 if power == 0 or scaled >= 100 else 1}f} {units[power]}"


def count(number_of: int, noun: str) -> str:
    """1 restart, 2 restarts."""
    return f"{number_of} {noun}{'' if number_of == 1 else 's'}"
