"""ArrayRecord, by its own library: a format with an index of its own and checksums of its own."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raylingvo.data.records.base import BadRecord, ShardedRecords
from raylingvo.data.records.files import DataFile, first_line
from raylingvo.errors import RequestError

# The library's own advice for random access; its default reads 16 MB ahead in every thread.
_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"
# A chunk for each record, so that reading one decompresses no other.
_ONE_RECORD_A_CHUNK = "group_size:1"
_MAX_OPEN = 128
_STEP = 1 << 24


class ArrayRecords(ShardedRecords):
    """Files behind fsspec are copied to a temporary folder first: the library reads local ones only."""

    def __init__(self, files: Sequence[DataFile]):
        """Raises RequestError for a file that is no ArrayRecord file."""
        self._files = tuple(files)
        self._copies: dict[int, _Copy] = {}
        self._open = functools.lru_cache(_MAX_OPEN)(self._open_shard)
        super().__init__("array_record", files, [self._open(i).num_records() for i in range(len(files))])

    def close(self) -> None:
        self._open.cache_clear()
        self._copies.clear()

    def _open_shard(self, shard: int) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        file = self._files[shard]
        path = Path(file.path) if file.filesystem is None else self._copy(shard)
        # The library has no words for a file that is gone or has changed; this raises them.
        file.open()
        reader = ArrayRecordReader(str(path), _RANDOM_ACCESS)
        if not reader.ok():
            raise RequestError(f"{file.path} is not a readable ArrayRecord file: its footer is missing or damaged")
        return reader

    def _copy(self, shard: int) -> Path:
        if shard not in self._copies:
            self._copies[shard] = _Copy(self._files[shard])
        return self._copies[shard].path

    def _read(self, shard: int, numbers: np.ndarray) -> list[bytes]:
        try:
            return self._open(shard).read(numbers.tolist())
        except RuntimeError as e:
            raise self._damage(shard, numbers, e) from e

    def _damage(self, shard: int, numbers: np.ndarray, error: RuntimeError) -> BadRecord:
        """For the first of the records that cannot be read by itself."""
        for number in numbers.tolist():
            # A reader that has failed once fails for ever.
            self._open.cache_clear()
            try:
                self._open(shard).read([number])
            except RuntimeError as e:
                return BadRecord(number, first_line(e))
        return BadRecord(int(numbers[0]), first_line(error))

    def _place(self, shard: int, number: int) -> str:
        return f"{self._files[shard].path}: record {number}"


class _Copy:
    """A local copy of a remote file, which goes when nobody holds this any more."""

    def __init__(self, file: DataFile):
        folder = tempfile.mkdtemp(prefix="raylingvo-records-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.path = Path(folder) / "copy.array_record"
        blob = file.open()
        with self.path.open("wb") as opened:
            for at in range(0, blob.size, _STEP):
                opened.write(blob.window(at, min(blob.size, at + _STEP)))


def write(path: Path, records: Iterable[bytes]) -> int:
    """Writes an ArrayRecord file; the number of records. Raises OSError when the disk refuses."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), _ONE_RECORD_A_CHUNK)
    n = 0
    try:
        for record in records:
            with _disk_errors():
                writer.write(record)
            n += 1
    finally:
        with _disk_errors():
            writer.close()
    return n


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """The library's word for an error of the disk is RuntimeError."""
    try:
        yield
    except RuntimeError as e:
        raise OSError(first_line(e)) from e
