"""Endless orders of examples in which every position is computed by itself.

They are what makes batch k a function of (seed, k): nothing is remembered from one batch to the next, and going on at
any position costs the same.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

# N examples, P positions that are asked for.

# A block of a mixture: its shares are exact in each, so weights count to the fourth digit.
_BLOCK = 10_000


class Order(Protocol):
    """Positions 0, 1, 2, .. without end, an example at each."""

    def at(self, position_P: np.ndarray) -> np.ndarray:
        """i64[P], the examples at i64[P] positions."""
        ...


class Shuffled:
    """One permutation of the examples after another, a new one for each epoch.

    examples: i64[N], N >= 1. seed: in [0, 2^64). stream: orders of one seed with other streams are independent.
    """

    def __init__(self, examples: np.ndarray, seed: int, stream: int = 0):
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

    weights: >= 1/10000 of their sum each. In every block of 10,000 positions the shares are exact to one position;
    within it the sources are shuffled. seed, stream: as for Shuffled.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], seed: int, stream: int = 0):
        self._orders = orders
        self._counts = _apportion(weights)
        self._source = np.repeat(np.arange(len(orders)), self._counts)
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
            rank_P[here] = rank[offset_P[here]] + int(block) * self._counts[source_P[here]]
        found = np.empty(len(position_P), np.int64)
        for s, order in enumerate(self._orders):
            here = source_P == s
            if here.any():
                found[here] = order.at(rank_P[here])
        return found

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The source at each position of a block, and how many positions before it in the block are of that source."""
        source = self._source[permutation(_BLOCK, self._seed, block, stream=self._stream)]
        return source, ranks(source)


def permutation(n: int, seed: int, epoch: int, *, stream: int = 0) -> np.ndarray:
    """i64[n], the order of n things in one epoch: a function of its arguments, of 64 bits each."""
    # Sorting random bits instead of Generator.permutation: NumPy promises to keep the bits of a bit generator, but not
    # what Generator makes of them (NEP 19), and a checkpoint must resume in the same order after an upgrade.
    key, counter = np.array([seed, epoch], np.uint64), np.array([0, 0, 0, stream], np.uint64)
    bits = np.random.Philox(key=key, counter=counter).random_raw(n)
    return np.argsort(bits, kind="stable")


def ranks(kind_N: np.ndarray) -> np.ndarray:
    """i64[N]: how many positions before this one are of the same kind, a small int."""
    by_kind = np.argsort(kind_N, kind="stable")
    starts = np.cumsum(np.bincount(kind_N)) - np.bincount(kind_N)
    rank_N = np.empty(len(kind_N), np.int64)
    rank_N[by_kind] = np.arange(len(kind_N)) - starts[kind_N[by_kind]]
    return rank_N


def _apportion(weights: Sequence[float]) -> np.ndarray:
    """i64[S], positions of a block for each of S weights: exact shares, rounded by largest remainder."""
    weight_S = np.asarray(weights, np.float64)
    if not (np.isfinite(weight_S).all() and (weight_S > 0).all()):
        raise ValueError(f"weights must be > 0 and finite (got {list(weights)})")
    share_S = weight_S / weight_S.sum() * _BLOCK
    count_S = np.floor(share_S).astype(np.int64)
    count_S[np.argsort(count_S - share_S, kind="stable")[: _BLOCK - count_S.sum()]] += 1
    if not count_S.all():
        raise ValueError(f"weights must each be at least 1/{_BLOCK} of their sum (got {list(weights)})")
    return count_S
