"""Endless orders of examples in which every position is computed by itself.

They are what makes batch k a function of (seed, k): nothing is remembered from one batch to the next, and going on at
any position costs the same.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

# N examples, P positions that are asked for.

# Positions of a mixture that are shuffled together: from block to block shares are exact to one position.
_BLOCK = 10_000

# Orders of one seed that are to be independent of each other have numbers.
EXAMPLES, BUCKETS, PACKING, MIXTURE, PARTS = range(5)
FIRST_FREE = 16


class Order(Protocol):
    """Positions 0, 1, 2, .. without end, an example at each."""

    def at(self, position_P: np.ndarray) -> np.ndarray:
        """i64[P], the examples at i64[P] positions."""
        ...


class Shuffled:
    """One permutation of the examples after another, a new one for each epoch.

    examples: i64[N], N >= 1. seed: in [0, 2^64). stream: orders of one seed with other streams are independent.
    """

    def __init__(self, examples: np.ndarray, seed: int, stream: int = EXAMPLES):
        if not len(examples):
            raise ValueError("examples must have at least one (got none)")
        self._examples = examples
        # Two: a batch at the border of epochs reads both.
        self._permutation = functools.lru_cache(maxsize=2)(
            functools.partial(permutation, len(examples), seed, stream=stream)
        )

    def at(self, position_P: np.ndarray) -> np.ndarray:
        """i64[P], the examples at i64[P] positions."""
        epoch_P, offset_P = np.divmod(position_P, len(self._examples))
        found = np.empty(len(position_P), np.int64)
        for epoch in np.unique(epoch_P):
            here = epoch_P == epoch
            found[here] = self._permutation(int(epoch))[offset_P[here]]
        return self._examples[found]


class Mixed:
    """Draws from several orders by weight; each of them goes on where its last draw ended.

    weights: > 0, at most 100 of them. After any number of blocks of 10,000 positions each order has had its share, to
    one position for each; within a block the orders are shuffled. seed, stream: as for Shuffled.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], seed: int, stream: int = MIXTURE):
        check_weights(weights)
        self._orders = orders
        total = sum(map(Fraction, weights))
        self._shares = [Fraction(weight) / total for weight in weights]
        self._most = int(np.argmax(weights))
        self._block = functools.lru_cache(maxsize=2)(self._make_block)
        self._seed, self._stream = seed, stream

    def at(self, position_P: np.ndarray) -> np.ndarray:
        """i64[P], the examples at i64[P] positions."""
        block_P, offset_P = np.divmod(position_P, _BLOCK)
        source_P, rank_P = np.empty_like(position_P), np.empty_like(position_P)
        for block in np.unique(block_P):
            here = block_P == block
            source, rank = self._block(int(block))
            source_P[here] = source[offset_P[here]]
            rank_P[here] = rank[offset_P[here]]
        found = np.empty(len(position_P), np.int64)
        for s, order in enumerate(self._orders):
            here = source_P == s
            if here.any():
                found[here] = order.at(rank_P[here])
        return found

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The source at each position of a block, and how many positions before it (of all) are of that source."""
        before, after = self._drawn(block), self._drawn(block + 1)
        source = np.repeat(np.arange(len(before)), after - before)
        source = source[permutation(_BLOCK, self._seed, block, stream=self._stream)]
        return source, before[source] + ranks(source)

    def _drawn(self, blocks: int) -> np.ndarray:
        """i64[S], how many positions of the first blocks are of each source: never less than of fewer blocks."""
        positions = blocks * _BLOCK
        # Rounded down, and what is left goes to the one with most, whose share of a block is more than one for each.
        drawn = [positions * share.numerator // share.denominator for share in self._shares]
        drawn[self._most] += positions - sum(drawn)
        return np.array(drawn)


def check_weights(weights: Sequence[float]) -> None:
    """Raises ValueError unless they are from 1 to 100 finite numbers > 0."""
    if not 1 <= len(weights) <= 100 or not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(f"weights must be 1 to 100 finite numbers > 0 (got {list(weights)})")


def part_seed(seed: int, part: int) -> int:
    """A seed for one of several streams of batches, independent of the others'."""
    return int(np.random.Philox(**_philox(seed, part, PARTS)).random_raw())


def permutation(n: int, seed: int, epoch: int, *, stream: int = EXAMPLES) -> np.ndarray:
    """i64[n], the order of n things in one epoch: a function of its arguments, of 64 bits each."""
    # Sorting random bits instead of Generator.permutation: NumPy promises to keep the bits of a bit generator, but not
    # what Generator makes of them (NEP 19), and a checkpoint must resume in the same order after an upgrade.
    return np.argsort(random_bits(n, seed, epoch, stream=stream), kind="stable")


def random_bits(n: int, seed: int, number: int, *, stream: int) -> np.ndarray:
    """u64[n], a function of its arguments."""
    return np.random.Philox(**_philox(seed, number, stream)).random_raw(n)


def _philox(seed: int, number: int, stream: int) -> dict[str, Any]:
    return {"key": np.array([seed, number], np.uint64), "counter": np.array([0, 0, 0, stream], np.uint64)}


def ranks(kind_N: np.ndarray) -> np.ndarray:
    """i64[N]: how many positions before this one are of the same kind, a small int."""
    by_kind = np.argsort(kind_N, kind="stable")
    starts = np.cumsum(np.bincount(kind_N)) - np.bincount(kind_N)
    rank_N = np.empty(len(kind_N), np.int64)
    rank_N[by_kind] = np.arange(len(kind_N)) - starts[kind_N[by_kind]]
    return rank_N
