"""`score-<step>.txt`: the metrics of one evaluation, a line each, as Lingvo writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from raylingvo.monitor.atomic import write_atomically


def write_score(directory: Path, step: int, metrics: Mapping[str, float]) -> Path:
    """Writes `directory/score-<step:08d>.txt`, atomically, with sorted lines `metric: value`, and returns its path.

    Values have eight significant digits (%.8g). Raises OSError, naming the file. Format: Lingvo runners.py, Evaler.
    """
    path = Path(directory) / f"score-{step:08d}.txt"
    write_atomically(path, "".join(f"{name}: {float(metrics[name]):.8g}\n" for name in sorted(metrics)))
    return path
