"""Population based training (Jaderberg et al. 2017): poor trials take weights of good ones, and vary their settings.

The choice is here, without Ray; schedulers.py lets Tune have it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from raylingvo.tune import spaces
from raylingvo.tune.spaces import Space

QUANTILE = 0.25  # of the population that takes, and that gives
RESAMPLE = 0.25  # how often a value is drawn anew instead of being varied
FACTORS = (0.8, 1.2)


class Exploit(NamedTuple):
    """Trial `taker` is to go on with the weights of `donor` and with these parameters."""

    taker: int
    donor: int
    params: Mapping[str, Any]


class Population:
    """The trials, by number, and how they stand. A trial is judged each `interval` steps."""

    def __init__(self, space: Mapping[str, Space], *, mode: str, interval: int, seed: int):
        self._space = space
        self._sign = 1.0 if mode == "max" else -1.0
        self._interval = interval
        self._rng = np.random.default_rng([seed, 0x9B7])
        self._params: dict[int, Mapping[str, Any]] = {}
        self._scores: dict[int, float] = {}
        self._judged: dict[int, int] = {}  # at which step

    def add(self, trial: int, params: Mapping[str, Any], *, step: int = 0, value: float = math.nan) -> None:
        """step, value: how a trial of an earlier start stood when it was judged last."""
        self._params.setdefault(trial, params)
        self._judged.setdefault(trial, step)
        if math.isfinite(value):
            self._scores.setdefault(trial, self._sign * value)

    def is_due(self, trial: int, step: int) -> bool:
        """Whether the interval of a trial is over at this step."""
        return step - self._judged[trial] >= self._interval

    def judge(self, trial: int, step: int, value: float) -> Exploit | None:
        """Takes note of a value at the end of an interval; what the trial is to do about it."""
        self._judged[trial] = step
        self._scores[trial] = self._sign * value if math.isfinite(value) else -math.inf
        best_first = sorted(self._scores, key=lambda other: (-self._scores[other], other))
        count = min(math.ceil(len(best_first) * QUANTILE), len(best_first) // 2)
        if trial not in best_first[len(best_first) - count :]:
            return None
        donor = best_first[int(self._rng.integers(count))]
        if self._scores[donor] <= self._scores[trial]:
            return None
        return Exploit(trial, donor, self._explored(self._params[donor]))

    def now(self, trial: int, params: Mapping[str, Any]) -> None:
        """What a trial trains with, as it has told."""
        self._params[trial] = params

    def done(self, exploit: Exploit) -> None:
        """The trial will have what it was to take."""
        self._params[exploit.taker] = exploit.params
        self._scores[exploit.taker] = self._scores[exploit.donor]

    def _explored(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {key: explored(space, params[key], self._rng) for key, space in self._space.items()}


def explored(space: Space, value: Any, rng: np.random.Generator) -> Any:
    """Another value of a space, near `value` unless it is drawn anew; a grid's are taken as a choice's."""
    resample = rng.random() < RESAMPLE
    up = bool(rng.random() < 0.5)
    factor = FACTORS[up]
    match space:
        case spaces.Uniform(low, high) | spaces.LogUniform(low, high):
            return space.draw(rng) if resample else float(min(max(value * factor, low), high))
        case spaces.Normal():
            return space.draw(rng) if resample else float(value * factor)
        case spaces.QUniform(_, _, q):
            moved = max(abs(value * (factor - 1)), q) * (1 if up else -1)
            return space.draw(rng) if resample else space.nearest(value + moved)
        case spaces.RandInt(low, high):
            moved = max(round(abs(value * (factor - 1))), 1) * (1 if up else -1)
            return space.draw(rng) if resample else min(max(value + moved, low), high - 1)
        case _:
            values = space.values()
            if resample:
                return values[int(rng.integers(len(values)))]
            here = values.index(value)
            return values[min(max(here + (1 if up else -1), 0), len(values) - 1)]
