"""Asynchronous successive halving (Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020).

A trial waits at each rung, and goes on from it when it is among the best of those that have come so far: as many as one
in `factor`. In contrast to a rule that only stops, nobody goes on for having come first.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable


class Rungs:
    """Trials by number. Rungs are after `grace`, `grace` * factor, ... steps, as long as that is below `max_steps`."""

    def __init__(self, total: int, *, mode: str, grace: int, factor: int, max_steps: int):
        """total: how many trials there are to be. mode: min or max."""
        self.steps = []
        while grace < max_steps:
            self.steps.append(grace)
            grace *= factor
        self._factor = factor
        self._sign = 1 if mode == "max" else -1
        # How many leave a rung when all have come.
        self._most = [total // factor ** (i + 1) for i in range(len(self.steps))]
        self._values: list[dict[int, float]] = [{} for _ in self.steps]  # by rung: trial -> value, the more the better
        self._gone_on: list[set[int]] = [set() for _ in self.steps]
        self._came: dict[int, int] = {}  # trial -> the step whose value counts at its highest rung
        self._ended: set[int] = set()
        self._any_whole = False  # whether a trial has come to its end

    def note(self, number: int, step: int, value: float) -> None:
        """An evaluation. The first one at or after a rung counts there; who is beyond a rung has gone on from it."""
        for i, rung in enumerate(self.steps):
            if step < rung:
                return
            if i > 0:
                self._gone_on[i - 1].add(number)
            if number not in self._values[i]:
                self._values[i][number] = self._sign * value if math.isfinite(value) else -math.inf
                self._came[number] = step

    def end(self, number: int, *, whole: bool) -> None:
        """This trial will not go on. whole: it has come to its end by itself, and has not failed."""
        self._ended.add(number)
        self._any_whole |= whole

    def go_on(self, number: int) -> None:
        """It goes on from the rung where it is."""
        if (rung := self._rung(number)) is not None:
            self._gone_on[rung].add(number)

    def may_go_on(self, number: int, step: int) -> bool:
        """Whether a trial need not wait at this step, whose evaluation has been noted. If so it goes on."""
        rung = self._rung(number)
        if rung is None or step < self.steps[rung] or number in self._gone_on[rung]:
            return True
        if number in self._good(rung):
            self.go_on(number)
            return True
        return False

    def waits(self, number: int) -> bool:
        """Whether it is at a rung, and has not gone on from it."""
        rung = self._rung(number)
        return rung is not None and number not in self._gone_on[rung] and number not in self._ended

    def is_beyond(self, number: int, step: int) -> bool:
        """Whether it has trained on after it came to its highest rung: `step` is that of its last evaluation."""
        return step > self._came.get(number, step)

    def next(self, candidates: Container[int]) -> int | None:
        """Who of these may go on from where it waits: from the highest rung first."""
        for rung in reversed(range(len(self.steps))):
            for number in self._good(rung):
                if number in candidates and self._rung(number) == rung and self.waits(number):
                    return number
        return None

    def last_resort(self, candidates: Iterable[int]) -> int | None:
        """The best of these, from the highest rung; None if a trial has come to its end.

        For when no trial is under way: of few trials one in `factor` may be none, and the best may have failed.
        """
        standing = {}
        for number in candidates:
            if self.waits(number) and (rung := self._rung(number)) is not None:
                standing[number] = rung, self._values[rung][number]
        left = [number for number, (_, value) in standing.items() if value > -math.inf]
        return None if self._any_whole else max(left, key=standing.__getitem__, default=None)

    def _good(self, rung: int) -> list[int]:
        """The best that have come there, the best first."""
        values = self._values[rung]
        num_good = min(len(values) // self._factor, self._most[rung])  # by chance more may have come here
        best = sorted(values, key=values.__getitem__, reverse=True)[:num_good]
        return [number for number in best if values[number] > -math.inf]

    def _rung(self, number: int) -> int | None:
        """The highest rung that it has reached."""
        return next((i for i in reversed(range(len(self.steps))) if number in self._values[i]), None)
