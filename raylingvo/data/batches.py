"""Batches by number: what training and evaluation read, whatever is in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from raylingvo.data.order import Order, Shuffled
from raylingvo.errors import RequestError

# B examples in a batch.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """The part of each batch that one host reads: rows [index * B / count, (index + 1) * B / count).

    So all hosts together read each batch once, and a position in the stream means the same on any number of hosts.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"index must be in [0, {self.count}) (got {self.index})")

    def rows(self, batch_size: int) -> slice:
        """The rows of this host. Raises RequestError if the hosts cannot share the batch evenly."""
        if batch_size % self.count:
            raise RequestError(f"a batch of {batch_size} cannot be shared evenly by {self.count} hosts")
        size = batch_size // self.count
        return slice(self.index * size, (self.index + 1) * size)


WHOLE = Shard()


class Batches(Protocol):
    """Batch k is a function of k alone: it may be asked for in any order, from several threads."""

    @property
    def num_examples(self) -> int:
        """Of the data; too long ones count."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """Some JSON values that a position belongs to: of one identity are only streams of equal examples in order."""
        ...

    @property
    def facts(self) -> Mapping[str, float]:
        """What there is to know about the data, as metrics: `num_bad_records` and the like."""
        ...

    def __len__(self) -> int:
        """How many there are; sys.maxsize of a stream without end."""
        ...

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        """Batch k: field -> array whose first axis is the batch, and `weight` f32[B], 0 for rows that are padding."""
        ...

    def samples(self) -> Iterator[dict[str, np.ndarray]]:
        """A batch of each shape that there may be."""
        ...


class Source(Protocol):
    """Random access to examples that all have one shape."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices` (i64[B], each in [0, len)), in that order: field -> array with leading axis B."""
        ...


class ShuffledBatches:
    """An endless shuffled stream: one permutation of the examples after another, cut into batches of `batch_size`.

    A batch may span epochs; no example is dropped or seen twice within one. batch_size: >= 1, may exceed the number of
    examples. seed: in [0, 2^64). order: another one than that. Raises ValueError if they are not, or if the source is
    empty.
    """

    facts: Mapping[str, float] = {}

    def __init__(self, source: Source, batch_size: int, seed: int, shard: Shard = WHOLE, order: Order | None = None):
        check_batch_size(batch_size)
        check_seed(seed)
        if not len(source):
            raise ValueError("source must have at least one example (got none)")
        self._source = source
        self._order = order or Shuffled(np.arange(len(source)), seed)
        self._batch_size, self._rows = batch_size, shard.rows(batch_size)
        self.num_examples = len(source)
        self.identity: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "num_examples": len(source)}

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        positions = np.arange(k * self._batch_size, (k + 1) * self._batch_size)[self._rows]
        batch = self._source.take(self._order.at(positions))
        return {**batch, "weight": np.ones(len(positions), np.float32)}

    def samples(self) -> Iterator[dict[str, np.ndarray]]:
        yield self[0]


class OrderedBatches:
    """Each example (or each of the first `max_examples`) exactly once, in order.

    The last batch is filled up with copies of the last example, of weight 0, so that every batch has the same shape.
    Raises ValueError if batch_size or max_examples is < 1.
    """

    facts: Mapping[str, float] = {}

    def __init__(self, source: Source, batch_size: int, max_examples: int | None = None, shard: Shard = WHOLE):
        check_batch_size(batch_size)
        self._source = source
        self.num_examples = at_most(len(source), max_examples)
        self._batch_size, self._rows = batch_size, shard.rows(batch_size)
        self.identity = {"batch_size": batch_size, "num_examples": self.num_examples}

    def __len__(self) -> int:
        return -(-self.num_examples // self._batch_size)

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        positions = np.arange(k * self._batch_size, (k + 1) * self._batch_size)[self._rows]
        batch = self._source.take(np.minimum(positions, self.num_examples - 1))
        return {**batch, "weight": (positions < self.num_examples).astype(np.float32)}

    def samples(self) -> Iterator[dict[str, np.ndarray]]:
        if len(self):
            yield self[0]


ENDLESS = 2**63 - 1


def check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1 (got {batch_size})")


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2^64) (got {seed})")


def at_most(num_examples: int, max_examples: int | None) -> int:
    """The smaller of the two. Raises ValueError if max_examples is < 1."""
    if max_examples is None:
        return num_examples
    if max_examples < 1:
        raise ValueError(f"max_examples must be >= 1 (got {max_examples})")
    return min(num_examples, max_examples)
