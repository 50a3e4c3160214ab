"""Sequences of similar length together: batches of a few shapes, each computed from its number alone.

How the boundaries are kept without remembering anything: the lengths of all examples are known when the data are
opened, so each bucket is an endless stream of its own, cut into its batches. In period p (as many examples as the data
have) a bucket of n examples and batches of B gives floor((p + 1) n / B) - floor(p n / B) batches: how many came before
is a formula, and which batch of which bucket is number k is found by bisection.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from raylingvo.data.batches import ENDLESS, WHOLE, Shard, at_most, check_seed
from raylingvo.data.buckets import Buckets
from raylingvo.data.order import BUCKETS, FIRST_FREE, Mixed, Order, Shuffled, permutation, ranks
from raylingvo.data.sequences import SequenceSource, digest, pad
from raylingvo.errors import RequestError

# S sources that are mixed, K buckets.


class BucketedBatches:
    """An endless shuffled stream of batches, each of the sequences of one bucket, padded to its upper bound.

    Every example comes once per epoch of its bucket; those longer than the last bound never: `facts` counts them.
    With several sources, each of them gives its share of all examples, by weight. seed: in [0, 2^64).
    Fields: those of `sequences.pad`; `id` i64[B], the number of the record; `source_id` i32[B] if there are several;
    `weight` f32[B], ones. Raises RequestError if a source has no example that is short enough.
    """

    def __init__(self, source: SequenceSource, buckets: Buckets, seed: int, shard: Shard = WHOLE):
        check_seed(seed)
        self._source, self._seed = source, seed
        bucket_N = buckets.bucket_of(source.length_NxC.max(axis=1))
        self.num_examples = len(bucket_N)
        self.facts = _facts(source, bucket_N)
        self._streams = _streams(source, buckets, bucket_N, seed, shard)
        self._period = functools.lru_cache(maxsize=2)(self._make_period)
        settings = {"bounds": buckets.upper_bounds, "batch_sizes": buckets.batch_sizes}
        self.identity = {"seed": seed, "num_examples": self.num_examples, "data": digest(source, **settings)}

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        period = self._period_of(k)
        stream_of_batch, number_of_batch = self._period(period)
        offset = k - self._batches_before(period)
        stream = self._streams[stream_of_batch[offset]]
        start = int(number_of_batch[offset]) * stream.batch_size
        ids = stream.order.at(np.arange(start, start + stream.batch_size)[stream.rows])
        return _padded(self._source, ids, stream.bound) | {"weight": np.ones(len(ids), np.float32)}

    def samples(self) -> Iterator[dict[str, np.ndarray]]:
        for stream in self._streams:
            ids = stream.order.at(np.arange(stream.batch_size)[stream.rows])
            yield _padded(self._source, ids, stream.bound) | {"weight": np.ones(len(ids), np.float32)}

    def _batches_before(self, period: int) -> int:
        return sum(stream.batches_before(period) for stream in self._streams)

    def _period_of(self, k: int) -> int:
        """The last period that starts with batch k or before it, and has a batch."""
        per_period = float(sum(stream.per_period / stream.batch_size for stream in self._streams))
        # A floor less than one off in each stream; the float itself a little more when k is huge.
        slack = (len(self._streams) + 1 + k * 1e-12) / per_period + 1
        low, high = max(0, int(k / per_period - slack)), int(k / per_period + slack) + 2
        return bisect.bisect_right(range(high), k, lo=low, key=self._batches_before) - 1

    def _make_period(self, period: int) -> tuple[np.ndarray, np.ndarray]:
        """The stream of each batch of a period, in shuffled order, and the number of the batch within that stream."""
        before = np.array([stream.batches_before(period) for stream in self._streams])
        after = np.array([stream.batches_before(period + 1) for stream in self._streams])
        stream_of_batch = np.repeat(np.arange(len(self._streams)), after - before)
        stream_of_batch = stream_of_batch[permutation(len(stream_of_batch), self._seed, period, stream=BUCKETS)]
        return stream_of_batch, before[stream_of_batch] + ranks(stream_of_batch)


class OrderedBucketedBatches:
    """Each example that is short enough exactly once: bucket after bucket, in each in order. Fields as in training.

    The last batch of a bucket is filled up with rows of weight 0 that are all padding.
    """

    def __init__(self, source: SequenceSource, buckets: Buckets, max_examples: int | None = None, shard: Shard = WHOLE):
        self._source = source
        self.num_examples = at_most(len(source.length_NxC), max_examples)
        bucket_N = buckets.bucket_of(source.length_NxC[: self.num_examples].max(axis=1))
        self.facts = _facts(source, bucket_N)
        self._batches = [
            (members[start : start + size], bound, size)
            for bucket, (bound, size) in enumerate(zip(buckets.upper_bounds, buckets.batch_sizes, strict=True))
            for members in [np.flatnonzero(bucket_N == bucket)]
            for start in range(0, len(members), size)
        ]
        self._shard = shard
        self.identity: Mapping[str, Any] = {"num_examples": self.num_examples}

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        ids, bound, size = self._batches[k]
        rows = self._shard.rows(size)
        position = np.arange(size)[rows]
        weight = (position < len(ids)).astype(np.float32)
        batch = _padded(self._source, ids[np.minimum(position, len(ids) - 1)], bound)
        for column in self._source.columns:
            batch[column.field("paddings")][weight == 0] = 1.0
        return batch | {"weight": weight}

    def samples(self) -> Iterator[dict[str, np.ndarray]]:
        shapes = set()
        for k, (_, bound, size) in enumerate(self._batches):
            if (bound, size) not in shapes:
                shapes.add((bound, size))
                yield self[k]


class _Stream:
    """The batches of one bucket."""

    def __init__(self, order: Order, bound: int, batch_size: int, rows: slice, per_period: Fraction):
        self.order, self.bound, self.batch_size, self.rows, self.per_period = order, bound, batch_size, rows, per_period

    def batches_before(self, period: int) -> int:
        return period * self.per_period.numerator // (self.per_period.denominator * self.batch_size)


def _streams(source: SequenceSource, buckets: Buckets, bucket_N: np.ndarray, seed: int, shard: Shard) -> list[_Stream]:
    groups = _group_slices(source)
    kept_S = [int((bucket_N[group] >= 0).sum()) for group in groups]
    if not all(kept_S):
        which = f"dataset {kept_S.index(0)}: " if len(groups) > 1 else ""
        raise RequestError(f"{which}no example is as short as the last bucket, {buckets.upper_bounds[-1]}")
    total = sum(Fraction(weight) for _, weight in source.groups)
    streams = []
    for bucket, (bound, size) in enumerate(zip(buckets.upper_bounds, buckets.batch_sizes, strict=True)):
        number = FIRST_FREE + bucket * 2**16  # of the bucket's first order
        orders: list[Order] = []
        shares: list[Fraction] = []  # of all examples that are drawn
        for s, (group, (_, weight)) in enumerate(zip(groups, source.groups, strict=True)):
            members = np.flatnonzero(bucket_N[group] == bucket) + group.start
            if len(members):
                orders.append(Shuffled(members, seed, stream=number + 1 + s))
                shares.append(Fraction(weight) / total * Fraction(len(members), kept_S[s]))
        if orders:
            order = Mixed(orders, [float(x) for x in shares], seed, stream=number) if len(orders) > 1 else orders[0]
            streams.append(_Stream(order, bound, size, shard.rows(size), sum(shares, Fraction(0)) * sum(kept_S)))
    return streams


def _group_slices(source: SequenceSource) -> list[slice]:
    ends = np.cumsum([number for number, _ in source.groups]).tolist()
    return [slice(end - number, end) for end, (number, _) in zip(ends, source.groups, strict=True)]


def _padded(source: SequenceSource, ids: np.ndarray, bound: int) -> dict[str, np.ndarray]:
    batch = pad(source.columns, source.take(ids), bound) | {"id": np.asarray(source.record_N)[ids]}
    if len(source.groups) > 1:
        ends = np.cumsum([number for number, _ in source.groups])
        batch["source_id"] = np.searchsorted(ends, ids, side="right").astype(np.int32)
    return batch


def _facts(source: SequenceSource, bucket_N: np.ndarray) -> dict[str, float]:
    return {**source.facts, "num_too_long": float((bucket_N < 0).sum())}
