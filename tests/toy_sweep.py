"""Records of sweeps that nobody has run, for the tests of what is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raylingvo.tune.record import Sweep, Trial

SPACES = {"learner.lr": "loguniform(1e-4, 1)", "model.norm": "choice(a, b)"}


def trial(number: int, *values: float, **fields: Any) -> Trial:
    """A finished one, whose metric has these values, one every ten steps."""
    made = {
        "number": number,
        "params": {"learner.lr": 0.123456789 / (number + 1), "model.norm": "ab"[number % 2]},
        "status": "finished",
        "step": 10 * len(values),
        "history": tuple((10 * (i + 1), value) for i, value in enumerate(values)),
    }
    return Trial(**made | fields)


def sweep(*trials: Trial, mode: str = "min", spaces: Mapping[str, str] = SPACES, **fields: Any) -> Sweep:
    """One that goes on, and has begun at 5 s."""
    request = {
        "experiment": "toy.Toy",
        "params": dict(spaces),
        "metric": "test/loss",
        "mode": mode,
        "scheduler": "asha",
        "search": "random",
        "samples": 40,
        "seed": None,
    }
    return Sweep(**{"request": request, "status": "running", "started": 5.0, "trials": trials} | fields)
