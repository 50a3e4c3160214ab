"""From which of several datasets each batch comes, as shares that change over the steps.

Everything is a function of the seed and the step. (Lingvo's core/task_scheduler.py draws from a global generator that
is not saved, and its adaptive schedulers read files of metrics: those are not here.)
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
import threading
from collections.abc import Sequence

import numpy as np

from raylingvo.data.order import MIXTURE, random_bits, ranks

# P steps, S datasets.

# Steps that are drawn together.
_BLOCK = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling(abc.ABC):
    """The share of each dataset at a step."""

    @abc.abstractmethod
    def shares(self, step_P: np.ndarray, number: int) -> np.ndarray:
        """f64[P, S], >= 0, at i64[P] steps, for S = `number` datasets; what they add up to does not matter."""

    def check(self, number: int) -> None:  # noqa: B027 - most fit any number
        """Raises ValueError if it is not for `number` datasets."""


def _check_shares(name: str, values: Sequence[float]) -> None:
    if not all(0 <= value < float("inf") for value in values) or not sum(values) > 0:
        raise ValueError(f"{name} must be finite numbers >= 0, and not all 0 (got {list(values)})")


def _check_number(name: str, values: Sequence[object], number: int) -> None:
    if len(values) != number:
        raise ValueError(f"{name} must have a number for each of {number} datasets (got {len(values)})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantShares(Sampling):
    """The same shares at every step."""

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_shares("weights", self.weights)
        object.__setattr__(self, "weights", tuple(map(float, self.weights)))

    def check(self, number: int) -> None:
        _check_number("weights", self.weights, number)

    def shares(self, step_P: np.ndarray, number: int) -> np.ndarray:
        return np.tile(np.array(self.weights, float), (len(step_P), 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Ramp(Sampling):
    """From the shares `start` at step 0 to the shares `end`, which are reached in the limit; `rate` per step."""

    start: tuple[float, ...]
    end: tuple[float, ...]
    rate: float

    def __post_init__(self) -> None:
        _check_shares("start", self.start)
        _check_shares("end", self.end)
        _check_number("end", self.end, len(self.start))
        if not self.rate > 0:
            raise ValueError(f"rate must be > 0 (got {self.rate})")

    def check(self, number: int) -> None:
        _check_number("start", self.start, number)

    def shares(self, step_P: np.ndarray, number: int) -> np.ndarray:
        start, end = (np.array(values, float) / sum(values) for values in (self.start, self.end))
        progress_Px1 = self._progress(self.rate * step_P)[:, None]
        return start + (end - start) * progress_Px1

    @abc.abstractmethod
    def _progress(self, x: np.ndarray) -> np.ndarray:
        """From 0 at x = 0 to 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExponentialRamp(_Ramp):
    """`start` to `end` by 1 - exp(-rate * step)."""

    def _progress(self, x: np.ndarray) -> np.ndarray:
        return -np.expm1(-x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigmoidRamp(_Ramp):
    """`start` to `end` by 2 / (1 + exp(-rate * step)) - 1."""

    def _progress(self, x: np.ndarray) -> np.ndarray:
        return np.tanh(x / 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundRobin(Sampling):
    """One dataset after the other, a batch each."""

    def shares(self, step_P: np.ndarray, number: int) -> np.ndarray:
        return np.eye(number)[step_P % number]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stages(Sampling):
    """One sampling after another: the first until step `boundaries[0]`, the second from there on, ..

    Each counts its steps from 0. boundaries: increasing, one fewer than samplings.
    """

    boundaries: tuple[int, ...]
    samplings: tuple[Sampling, ...]

    def __post_init__(self) -> None:
        if len(self.boundaries) != len(self.samplings) - 1:
            raise ValueError(
                f"boundaries must be one fewer than the {len(self.samplings)} samplings (got {len(self.boundaries)})"
            )
        if any(a >= b for a, b in itertools.pairwise((0, *self.boundaries))):
            raise ValueError(f"boundaries must be > 0 and increasing (got {list(self.boundaries)})")

    def check(self, number: int) -> None:
        for sampling in self.samplings:
            sampling.check(number)

    def shares(self, step_P: np.ndarray, number: int) -> np.ndarray:
        starts = np.array([0, *self.boundaries])
        stage_P = np.searchsorted(starts, step_P, side="right") - 1
        shares_PxS = np.empty((len(step_P), number))
        for stage in np.unique(stage_P):
            here = stage_P == stage
            shares = self.samplings[stage].shares(step_P[here] - starts[stage], number)
            shares_PxS[here] = shares / shares.sum(axis=1, keepdims=True)
        return shares_PxS


class SampledOrder:
    """An `Order`: at step k the number S * n + s, where s is the dataset drawn for it and n how often it was before.

    A step needs the draws of all blocks before its own, which are made once; two blocks are kept.
    """

    def __init__(self, sampling: Sampling, number: int, seed: int):
        sampling.check(number)
        self._sampling, self._number, self._seed = sampling, number, seed
        self._before = np.zeros((1, number), np.int64)  # [i]: how often each was drawn before block i
        self._draw = functools.lru_cache(maxsize=2)(self._draw_block)
        self._lock = threading.Lock()

    def at(self, position_P: np.ndarray) -> np.ndarray:
        """i64[P], the numbers at i64[P] steps."""
        block_P, offset_P = np.divmod(position_P, _BLOCK)
        found = np.empty(len(position_P), np.int64)
        for block in np.unique(block_P):
            here = block_P == block
            drawn = self._draw(int(block))
            n = self._drawn_before(int(block))[drawn] + ranks(drawn)
            found[here] = (n * self._number + drawn)[offset_P[here]]
        return found

    def _draw_block(self, block: int) -> np.ndarray:
        """i64[_BLOCK], the dataset at each step of a block."""
        shares = self._sampling.shares(np.arange(block * _BLOCK, (block + 1) * _BLOCK), self._number)
        upper = np.cumsum(shares, axis=1)
        # 53 bits, so that nothing is rounded up to 1: a dataset of share 0 is never drawn, not even the last one.
        point = (random_bits(_BLOCK, self._seed, block, stream=MIXTURE) >> np.uint64(11)) / 2.0**53 * upper[:, -1]
        return (point[:, None] >= upper[:, :-1]).sum(axis=1)

    def _drawn_before(self, block: int) -> np.ndarray:
        with self._lock:
            while len(self._before) <= block:
                counts = np.bincount(self._draw(len(self._before) - 1), minlength=self._number)
                self._before = np.concatenate([self._before, self._before[-1:] + counts])
            return self._before[block]
