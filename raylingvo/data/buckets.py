"""Length buckets: which examples share a batch, so that little of it is padding."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

# n examples, K buckets, D candidates for their bounds.

# Beyond this many candidates, neighbours are merged (Lingvo's number); the search takes K * D^2 / 2 steps.
_MAX_CANDIDATES = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Buckets:
    """Bucket k takes lengths in (upper_bounds[k - 1], upper_bounds[k]], padded to its bound, batch_sizes[k] a batch.

    Longer examples than the last bound belong nowhere.
    """

    upper_bounds: tuple[int, ...]
    batch_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        bounds, sizes = self.upper_bounds, self.batch_sizes
        if not bounds or bounds[0] < 1 or any(a >= b for a, b in itertools.pairwise(bounds)):
            raise ValueError(f"upper_bounds must be one or more, >= 1 and increasing (got {bounds})")
        if len(sizes) != len(bounds):
            raise ValueError(f"batch_sizes must be as many as upper_bounds, {len(bounds)} (got {sizes})")
        if min(sizes) < 1:
            raise ValueError(f"batch_sizes must be >= 1 (got {sizes})")

    def bucket_of(self, lengths: np.ndarray) -> np.ndarray:
        """lengths: i64[n] >= 0 -> the bucket of each, i64[n]; -1: too long. Raises ValueError if one is negative."""
        lengths = np.asarray(lengths)
        if lengths.min(initial=0) < 0:
            raise ValueError(f"lengths must be >= 0 (got {lengths.min()})")
        bucket = np.searchsorted(self.upper_bounds, lengths)
        return np.where(bucket < len(self.upper_bounds), bucket, -1)

    def padded_tokens(self, lengths: np.ndarray) -> int:
        """The slots that examples of these lengths (i64[n]) take once padded; too long ones take none."""
        bucket = self.bucket_of(lengths)
        return int(np.array(self.upper_bounds)[bucket[bucket >= 0]].sum())

    def padding_waste(self, lengths: np.ndarray) -> float:
        """The share of the padded slots that is padding, in [0, 1]; 0 if all are too long. The last batches count full.

        Batches that are filled up at the end of the data add to it: this is the waste of an endless stream.
        """
        lengths = np.asarray(lengths)
        kept = int(lengths[self.bucket_of(lengths) >= 0].sum())
        padded = self.padded_tokens(lengths)
        return 1 - kept / padded if padded else 0.0


def learn_bounds(
    histogram: np.ndarray, num_buckets: int, *, last_bound: int | None = None, multiple_of: int = 1
) -> tuple[int, ...]:
    """The upper bounds that pad least: at most `num_buckets`, increasing.

    Dynamic programme over the bounds in order (Lingvo: core/ops/record_batcher.cc), exact for up to 500 different
    lengths. Of more, neighbours are merged, so that each group holds about a 500th of all tokens.

    Args:
      histogram: i64[max length + 1] >= 0, how many examples have each length (`np.bincount(lengths)`).
      num_buckets: >= 1. Fewer come back if there are fewer different lengths.
      last_bound: >= 1, the last of the bounds, whatever the data; longer examples are left out. None: the longest
        length, rounded up.
      multiple_of: >= 1; all bounds are multiples of it.

    Raises:
      ValueError: an argument is out of range; last_bound is not a multiple; there are no examples and no last_bound.
    """
    histogram = np.asarray(histogram)
    if histogram.ndim != 1 or (histogram.size and (histogram.dtype.kind not in "iu" or histogram.min() < 0)):
        raise ValueError(f"histogram must be a vector of integers >= 0 (got {histogram})")
    for name, value in (("num_buckets", num_buckets), ("multiple_of", multiple_of)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1 (got {value})")
    if last_bound is not None and (last_bound < 1 or last_bound % multiple_of):
        raise ValueError(f"last_bound must be >= 1 and a multiple of {multiple_of} (got {last_bound})")

    length = np.flatnonzero(histogram[: None if last_bound is None else last_bound + 1])
    count = histogram[length].astype(np.int64)
    if last_bound is None and not len(length):
        raise ValueError("histogram must have an example, or last_bound be given (got neither)")
    # An empty example takes a slot too: no batch is of width 0.
    rounded = np.maximum(-(-length // multiple_of), 1) * multiple_of
    bound_D, group = np.unique(rounded, return_inverse=True)
    count_D = np.bincount(group, count, len(bound_D)).astype(np.int64)
    bound_D, count_D = _merge(bound_D, count_D)
    if last_bound is not None and last_bound not in bound_D:  # larger than all
        bound_D, count_D = np.append(bound_D, last_bound), np.append(count_D, 0)
    return _least_padded(bound_D, count_D, num_buckets)


def suggest(lengths: np.ndarray, tokens_per_batch: int, num_buckets: int, multiple_of: int = 1) -> Buckets:
    """Buckets for these lengths (i64[n] >= 0, n >= 1): the bounds that pad least, about as many slots in every batch.

    A batch has max(1, tokens_per_batch // bound) examples. Raises ValueError as `learn_bounds` does, and if lengths is
    empty or tokens_per_batch < 1.
    """
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or not lengths.size or lengths.dtype.kind not in "iu" or lengths.min() < 0:
        raise ValueError(f"lengths must be one or more integers >= 0 (got {lengths})")
    if tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch must be >= 1 (got {tokens_per_batch})")
    bounds = learn_bounds(np.bincount(lengths), num_buckets, multiple_of=multiple_of)
    return Buckets(upper_bounds=bounds, batch_sizes=tuple(max(1, tokens_per_batch // bound) for bound in bounds))


def _merge(bound_D: np.ndarray, count_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most _MAX_CANDIDATES bounds, each of a group of neighbours with about the same number of slots."""
    if len(bound_D) <= _MAX_CANDIDATES:
        return bound_D, count_D
    slots_D = np.cumsum(bound_D * count_D)
    # The group of each; a group ends at its last member, whose bound the others take.
    group_D = (slots_D - 1) * _MAX_CANDIDATES // slots_D[-1]
    ends = np.append(np.flatnonzero(np.diff(group_D)), len(bound_D) - 1)
    return bound_D[ends], np.diff(np.cumsum(count_D)[ends], prepend=0)


def _least_padded(bound_D: np.ndarray, count_D: np.ndarray, num_buckets: int) -> tuple[int, ...]:
    """The bounds, at most num_buckets of bound_D and the last of them among these, with the fewest slots in all."""
    num_candidates = len(bound_D)
    # Row 0 is no bound at all: from there on, nothing is taken yet.
    taken_D1 = np.concatenate([[0], np.cumsum(count_D)])
    new_slots_D1xD1 = (taken_D1[None, :] - taken_D1[:, None]) * np.concatenate([[0], bound_D])[None, :]
    # Only upward: a bound follows a smaller one.
    unreachable = np.iinfo(np.int64).max // 2
    new_slots_D1xD1[np.tril_indices(num_candidates + 1)] = unreachable
    slots_D1 = np.full(num_candidates + 1, unreachable)
    slots_D1[0] = 0
    before, totals = [], []
    for _ in range(min(num_buckets, num_candidates)):
        total_D1xD1 = slots_D1[:, None] + new_slots_D1xD1
        before.append(total_D1xD1.argmin(axis=0))
        slots_D1 = np.minimum(total_D1xD1.min(axis=0), unreachable)
        totals.append(int(slots_D1[-1]))
    bounds, at = [], num_candidates
    for k in range(int(np.argmin(totals)), -1, -1):
        bounds.append(int(bound_D[at - 1]))
        at = before[k][at]
    return tuple(reversed(bounds))
