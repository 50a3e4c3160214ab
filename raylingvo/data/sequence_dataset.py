"""Datasets of token sequences: bucketed by length, or packed."""

from __future__ import annotations

import abc
import dataclasses
import itertools

from raylingvo.data.batches import WHOLE, Batches, Shard
from raylingvo.data.bucketed import BucketedBatches, OrderedBucketedBatches
from raylingvo.data.buckets import Buckets
from raylingvo.data.dataset import Dataset
from raylingvo.data.packed import OrderedPackedBatches, PackedBatches
from raylingvo.data.sequences import SequenceSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceDataset(Dataset):
    """Sequences of different lengths, in batches of a few fixed shapes. Either `bucket_bounds` or `packed_lengths`.

    bucket_bounds: inclusive upper bounds, increasing; an example goes by its longest column, and is padded to the bound
    of its bucket. Longer ones are left out and counted. bucket_batch_sizes: the batch size of each bucket; (): that of
    the role for all of them. packed_lengths: the positions of a row for each column, in which several examples stand
    one behind the other; the role's batch size is then the number of rows. `raylingvo data stats` suggests bounds.
    """

    bucket_bounds: tuple[int, ...] = ()
    bucket_batch_sizes: tuple[int, ...] = ()
    packed_lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.bucket_bounds) == bool(self.packed_lengths):
            raise ValueError("one of bucket_bounds and packed_lengths must be given, and not both")
        if any(a >= b for a, b in itertools.pairwise((0, *self.bucket_bounds))):
            raise ValueError(f"bucket_bounds must be > 0 and increasing (got {list(self.bucket_bounds)})")
        if self.bucket_batch_sizes and len(self.bucket_batch_sizes) != len(self.bucket_bounds):
            raise ValueError(
                f"bucket_batch_sizes must have a number for each of the {len(self.bucket_bounds)} bucket_bounds "
                f"(got {list(self.bucket_batch_sizes)})"
            )
        for name in ("bucket_batch_sizes", "packed_lengths"):
            if any(value < 1 for value in getattr(self, name)):
                raise ValueError(f"{name} must be >= 1 (got {list(getattr(self, name))})")

    @abc.abstractmethod
    def open(self) -> SequenceSource:
        """The sequences. Raises RequestError if the data are missing, damaged or unreadable."""

    @property
    def batching(self) -> tuple[tuple[int, ...], ...]:
        """What determines the shapes of batches."""
        return self.bucket_bounds, self.bucket_batch_sizes, self.packed_lengths

    def train_batches(self, batch_size: int, seed: int, shard: Shard = WHOLE) -> Batches:
        return self.batch(self.open(), batch_size, seed, shard)

    def eval_batches(self, batch_size: int, max_examples: int | None = None, shard: Shard = WHOLE) -> Batches:
        return self.batch_in_order(self.open(), batch_size, max_examples, shard)

    def batch(self, source: SequenceSource, batch_size: int, seed: int, shard: Shard = WHOLE) -> Batches:
        """An endless shuffled stream of any source, as this dataset would batch it."""
        if self.packed_lengths:
            return PackedBatches(source, batch_size, self.packed_lengths, seed, shard)
        return BucketedBatches(source, self._buckets(batch_size), seed, shard)

    def batch_in_order(
        self, source: SequenceSource, batch_size: int, max_examples: int | None = None, shard: Shard = WHOLE
    ) -> Batches:
        """Each example of any source exactly once, as this dataset would batch them."""
        if self.packed_lengths:
            return OrderedPackedBatches(source, batch_size, self.packed_lengths, max_examples, shard)
        return OrderedBucketedBatches(source, self._buckets(batch_size), max_examples, shard)

    def _buckets(self, batch_size: int) -> Buckets:
        sizes = self.bucket_batch_sizes or (batch_size,) * len(self.bucket_bounds)
        return Buckets(upper_bounds=self.bucket_bounds, batch_sizes=sizes)
