"""What a dataset is: a frozen description that opens to batches."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

from raylingvo.data import opened
from raylingvo.data.batches import WHOLE, Batches, OrderedBatches, Shard, ShuffledBatches, Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset(abc.ABC):
    """Where batches come from, as configuration. Reading starts in the methods that give batches.

    They raise RequestError if the data are missing or unreadable, or cannot be shared by the hosts.
    """

    def check(self) -> None:  # noqa: B027 - most data need no check
        """Raises RequestError, naming the fix, if the data are not there. Cheap: called before anything starts."""

    @abc.abstractmethod
    def train_batches(self, batch_size: int, seed: int, shard: Shard = WHOLE) -> Batches:
        """An endless shuffled stream, each example once per epoch."""

    @abc.abstractmethod
    def eval_batches(self, batch_size: int, max_examples: int | None = None, shard: Shard = WHOLE) -> Batches:
        """Each example, or each of the first `max_examples`, exactly once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedShapeDataset(Dataset):
    """A dataset of examples that all have one shape."""

    # Whether `open` reads all of it into arrays, which other processes can then have without reading it again.
    in_memory: ClassVar[bool] = False

    @abc.abstractmethod
    def open(self) -> Source:
        """The examples. Raises RequestError if the data are missing or unreadable."""

    def train_batches(self, batch_size: int, seed: int, shard: Shard = WHOLE) -> Batches:
        return ShuffledBatches(self._source(), batch_size, seed, shard)

    def eval_batches(self, batch_size: int, max_examples: int | None = None, shard: Shard = WHOLE) -> Batches:
        return OrderedBatches(self._source(), batch_size, max_examples, shard)

    def _source(self) -> Source:
        found = opened.find(self)
        return self.open() if found is None else found
