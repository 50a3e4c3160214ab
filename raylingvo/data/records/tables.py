"""Records that are rows of tables, read a group of rows at a time: what Parquet and Arrow share."""

from __future__ import annotations

import abc
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from raylingvo.data.records import columns
from raylingvo.data.records.base import BadRecord, ShardedRecords
from raylingvo.data.records.files import Blob, DataFile, first_line, reading

if TYPE_CHECKING:
    import pyarrow as pa

# Decoded groups that are kept. Reading at random is fast while they hold what is read: small sets, or neighbours.
_CACHE_BYTES = 256 << 20
# The rows of a group that is written: the price of one record read by itself, and of an index of groups.
_GROUP_ROWS = 4096


class TableRecords(ShardedRecords):
    """Rows of files that are groups of rows, each of which is read and decoded whole."""

    def __init__(self, format: str, files: Sequence[DataFile], group_sizes: Sequence[Sequence[int]]):
        """group_sizes: for each file, the number of rows in each of its groups."""
        self._group_ends = [np.cumsum(np.asarray(sizes, np.int64)) for sizes in group_sizes]
        self._cache = _TableCache(_CACHE_BYTES)
        super().__init__(format, files, [sum(sizes) for sizes in group_sizes])

    def close(self) -> None:
        self._cache.clear()

    @abc.abstractmethod
    def _group(self, shard: int, group: int) -> pa.Table:
        """Reads and decodes one group of rows. Not called from two threads at once."""

    def _read(self, shard: int, numbers: np.ndarray) -> list[dict[str, Any]]:
        import pyarrow as pa

        ends = self._group_ends[shard]
        group_B = np.searchsorted(ends, numbers, side="right")
        found: list[Any] = [None] * len(numbers)
        for group in np.unique(group_B).tolist():
            positions = np.flatnonzero(group_B == group)
            start = int(ends[group - 1]) if group else 0
            try:
                table = self._cache.get((shard, group), lambda group=group: self._group(shard, group))
                chosen = columns.rows(table.take(pa.array(numbers[positions] - start)))
            except read_errors() as e:
                raise BadRecord(int(numbers[positions[0]]), first_line(e)) from e
            for position, record in zip(positions.tolist(), chosen, strict=True):
                found[position] = record
        return found

    def _place(self, shard: int, number: int) -> str:
        group = int(np.searchsorted(self._group_ends[shard], number, side="right"))
        return f"{self._files[shard].path}: row {number} in group {group}"


def read_errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises for damaged files: its own, and those of names and times that are none."""
    import pyarrow as pa

    return (pa.ArrowException, OSError, ValueError, OverflowError)


def open_source(file: DataFile) -> tuple[Blob, Any]:
    """The file, whose `window` tells whether it has changed, and as pyarrow reads it: a local one is mapped."""
    import pyarrow as pa

    blob = file.open()
    if file.filesystem is None:
        return blob, pa.BufferReader(pa.py_buffer(blob.window(0, blob.size)))
    with reading(file.path):
        return blob, file.filesystem.open(file.key, "rb")


class _TableCache:
    """The tables that were used last, up to a number of bytes, but at least one."""

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._tables: OrderedDict[tuple[int, int], tuple[pa.Table, int]] = OrderedDict()
        self._bytes = 0  # kept, because Arrow takes 10 us to find the size of one table
        # Held while a table is read: pyarrow's readers are not made for several threads, and use several themselves.
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int], read: Callable[[], pa.Table]) -> pa.Table:
        with self._lock:
            if key in self._tables:
                self._tables.move_to_end(key)
                return self._tables[key][0]
            table = read()
            self._tables[key] = table, table.nbytes
            self._bytes += table.nbytes
            while len(self._tables) > 1 and self._bytes > self._max_bytes:
                self._bytes -= self._tables.popitem(last=False)[1][1]
        return table

    def clear(self) -> None:
        with self._lock:
            self._tables.clear()
            self._bytes = 0


def groups(records: Iterable[dict[str, Any]]) -> Iterator[pa.Table]:
    """The records as tables of one schema, of which only one is in memory. Raises RequestError as `columns.table`."""
    rows = iter(records)
    schema: pa.Schema | None = None
    first = 0
    while group := list(islice(rows, _GROUP_ROWS)):
        table = columns.table(group, first, schema)
        schema = table.schema
        first += len(group)
        yield table
