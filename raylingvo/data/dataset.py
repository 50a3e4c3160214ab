"""What a dataset is: a frozen description that opens to batches."""

from __future__ import annotations

import abc
import dataclasses

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

    @abc.abstractmethod
    def open(self) -> Source:
        """The examples. Raises RequestError if the data are missing or unreadable."""

    def train_batches(self, batch_size: int, seed: int, shard: Shard = WHOLE) -> Batches:
        return ShuffledBatches(self.open(), batch_size, seed, shard)

    def eval_batches(self, batch_size: int, max_examples: int | None = None, shard: Shard = WHOLE) -> Batches:
        return OrderedBatches(self.open(), batch_size, max_examples, shard)
