"""What opened records are: random access over the shards of one format, and the error of a damaged record."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from raylingvo.data.records.files import DataFile
from raylingvo.errors import RequestError


class CorruptRecordError(RequestError):
    """A record that cannot be read, or a file that breaks at one.

    index: the record's index in the dataset; where a file breaks, the number of whole records before the break. The
    message is one line with the file, the record number in it, the byte offset (where the format has one) and the
    reason.
    """

    def __init__(self, index: int, message: str):
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        # Exceptions pickle their `args`, which is only the message; this one must survive the way between processes.
        return type(self), (self.index, str(self))


class Records(Protocol):
    """Random access to the records of a dataset. `read` and `where` may be called from several threads at once.

    fingerprint: a stable hash over the format and the files' names, sizes and times of change: a key for caches.
    problems: a line for each file of which records are lost, if `open_records` allowed that; else empty.
    """

    fingerprint: str
    problems: list[str]

    def __len__(self) -> int:
        """The number of records."""
        ...

    def read(self, indices: np.ndarray) -> list[Any]:
        """The records at `indices` (i64[B], each in [0, len)), in that order.

        bytes for text, tfrecord, array_record and iota; a dict for jsonl, parquet, arrow and npz. Raises
        CorruptRecordError for the first one that is damaged, IndexError if an index is out of range, RequestError if
        a file has changed since it was opened.
        """
        ...

    def where(self, index: int) -> str:
        """The place of a record, for messages: `FILE: record 17 at byte 4711`; both count from 0 in the file."""
        ...

    def close(self) -> None:
        """Lets go of files and memory. A later `read` opens them again."""
        ...


class BadRecord(ValueError):
    """Says to ShardedRecords that record `number` of the file is damaged, and why."""

    def __init__(self, number: int, reason: str):
        super().__init__(reason)
        self.number = number


class ShardedRecords(abc.ABC):
    """Records that lie in shards, one after another: what all formats share."""

    def __init__(self, format: str, files: Sequence[DataFile], counts: Sequence[int], problems: Sequence[str] = ()):
        """counts: the number of records in each file."""
        self.fingerprint = fingerprint(format, files)
        self.problems = list(problems)
        self._files = tuple(files)
        self._ends = np.cumsum(np.asarray(counts, np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, indices: np.ndarray) -> list[Any]:
        indices = np.asarray(indices)
        if not indices.size:
            return []
        if indices.dtype.kind not in "iu" or indices.ndim != 1:
            raise ValueError(f"indices must be integers of shape [B] (got {indices.dtype}{[*indices.shape]})")
        if indices.min() < 0 or indices.max() >= len(self):
            wrong = indices[(indices < 0) | (indices >= len(self))][0]
            raise IndexError(f"record {wrong} does not exist: there are {len(self)}")
        shard_B = np.searchsorted(self._ends, indices, side="right")
        if (shard_B == shard_B[0]).all():
            return self._of_shard(int(shard_B[0]), indices)
        found: list[Any] = [None] * len(indices)
        for shard in np.unique(shard_B).tolist():
            positions = np.flatnonzero(shard_B == shard)
            for position, record in zip(positions.tolist(), self._of_shard(shard, indices[positions]), strict=True):
                found[position] = record
        return found

    def where(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} does not exist: there are {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return self._place(shard, index - self._start(shard))

    def close(self) -> None:  # noqa: B027 - some formats hold nothing
        """Lets go of files and memory. A later `read` opens them again."""

    def _start(self, shard: int) -> int:
        return int(self._ends[shard - 1]) if shard else 0

    def _of_shard(self, shard: int, indices: np.ndarray) -> list[Any]:
        start = self._start(shard)
        try:
            return self._read(shard, indices.astype(np.int64) - start)
        except BadRecord as e:
            raise CorruptRecordError(start + e.number, f"{self._place(shard, e.number)}: {e}") from e

    @abc.abstractmethod
    def _read(self, shard: int, numbers: np.ndarray) -> list[Any]:
        """Records `numbers` (i64[B], counted in the file) of a shard. Raises BadRecord for the first damaged one."""

    @abc.abstractmethod
    def _place(self, shard: int, number: int) -> str:
        """`FILE: record NUMBER ...`."""


def fingerprint(format: str, files: Sequence[DataFile]) -> str:
    """32 hexadecimal digits."""
    digest = hashlib.sha256(format.encode())
    for file in files:
        digest.update(f"\0{file.path}\0{file.size}\0{file.version}".encode())
    return digest.hexdigest()[:32]
