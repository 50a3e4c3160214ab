"""Several sequences in a row: batches of one shape with little padding, each computed from its number alone.

Which sequences share a row is decided once, when the data are opened (best fit, over examples in an order that the seed
gives). A row is then an example like any other: rows are shuffled anew in each epoch, and batch k needs no history.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from raylingvo.data.batches import ENDLESS, WHOLE, Shard, at_most, check_batch_size, check_seed
from raylingvo.data.order import PACKING, Shuffled, permutation
from raylingvo.data.sequences import SequenceSource, digest, pack
from raylingvo.errors import RequestError
from raylingvo.ops.bin_packing import best_fit, fill_ratio

# R rows, C columns.


class _Rows:
    """Examples packed into rows of `lengths` positions, one number for each column."""

    def __init__(self, source: SequenceSource, lengths: Sequence[int], candidates: np.ndarray):
        """candidates: i64[M], the examples, in the order in which equal ones are placed."""
        if len(lengths) != len(source.columns):
            names = ", ".join(column.name or "ids" for column in source.columns)
            raise RequestError(f"packed_lengths must have a length for each of {names} (got {list(lengths)})")
        self._source, self._lengths = source, lengths
        length_MxC = source.length_NxC[candidates]
        short, empty = (length_MxC <= np.array(lengths)).all(axis=1), (length_MxC == 0).any(axis=1)
        fits = short & ~empty
        candidates, length_MxC = candidates[fits], length_MxC[fits]
        if not len(candidates):
            raise RequestError(f"no example fits into packed_lengths {list(lengths)}")
        row_M, self.number = best_fit(length_MxC, lengths)
        by_row = np.argsort(row_M, kind="stable")
        self._examples = candidates[by_row]
        self._starts = np.searchsorted(row_M[by_row], np.arange(self.number + 1))
        self.facts = {
            **source.facts,
            "num_too_long": float((~short).sum()),
            "num_empty": float((short & empty).sum()),
            "packing_fill": fill_ratio(length_MxC, lengths, self.number),
        }

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers; -1 is an empty one."""
        parts = [self._examples[self._starts[r] : self._starts[r + 1]] if r >= 0 else self._examples[:0] for r in rows]
        row_B = np.repeat(np.arange(len(rows)), [len(part) for part in parts])
        sequences = self._source.take(np.concatenate(parts))
        batch = pack(self._source.columns, sequences, row_B, len(rows), self._lengths)
        return batch | {"weight": (rows >= 0).astype(np.float32)}


class PackedBatches:
    """An endless shuffled stream of batches of `batch_size` packed rows. Fields: those of `sequences.pack`, `weight`.

    lengths: the positions of a row, for each column. Examples that are longer, or have an empty column, are left out
    and counted in `facts`. seed: in [0, 2^64). Raises RequestError if no example fits.
    """

    def __init__(
        self, source: SequenceSource, batch_size: int, lengths: Sequence[int], seed: int, shard: Shard = WHOLE
    ):
        check_batch_size(batch_size)
        check_seed(seed)
        self.num_examples = len(source.length_NxC)
        self._rows = _Rows(source, lengths, permutation(self.num_examples, seed, 0, stream=PACKING))
        self.facts = self._rows.facts
        self._order = Shuffled(np.arange(self._rows.number), seed)
        self._batch_size, self._mine = batch_size, shard.rows(batch_size)
        self.identity: Mapping[str, Any] = {
            "seed": seed,
            "batch_size": batch_size,
            "num_examples": self.num_examples,
            "data": digest(source, packed_lengths=list(lengths)),
        }

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        positions = np.arange(k * self._batch_size, (k + 1) * self._batch_size)[self._mine]
        return self._rows.read(self._order.at(positions))

    def samples(self) -> Iterator[dict[str, np.ndarray]]:
        yield self[0]


class OrderedPackedBatches:
    """Each example that fits exactly once. The last batch is filled up with empty rows, of weight 0."""

    def __init__(
        self,
        source: SequenceSource,
        batch_size: int,
        lengths: Sequence[int],
        max_examples: int | None = None,
        shard: Shard = WHOLE,
    ):
        check_batch_size(batch_size)
        self.num_examples = at_most(len(source.length_NxC), max_examples)
        self._rows = _Rows(source, lengths, np.arange(self.num_examples))
        self.facts = self._rows.facts
        self._batch_size, self._mine = batch_size, shard.rows(batch_size)
        self.identity: Mapping[str, Any] = {"batch_size": batch_size, "num_examples": self.num_examples}

    def __len__(self) -> int:
        return -(-self._rows.number // self._batch_size)

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        rows = np.arange(k * self._batch_size, (k + 1) * self._batch_size)[self._mine]
        return self._rows.read(np.where(rows < self._rows.number, rows, -1))

    def samples(self) -> Iterator[dict[str, np.ndarray]]:
        yield self[0]
