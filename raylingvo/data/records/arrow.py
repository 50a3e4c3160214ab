"""Arrow IPC files (Feather V2 is one) and streams, by record batches."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylingvo.data.records.files import DataFile, first_line
from raylingvo.data.records.tables import TableRecords, groups, open_source, read_errors
from raylingvo.errors import RequestError

if TYPE_CHECKING:
    import pyarrow as pa

_MAGIC = b"ARROW1"
_MAX_OPEN = 64


class ArrowRecords(TableRecords):
    """Rows as dicts. Local files are mapped; a stream that is compressed or remote is in memory while it is open."""

    def __init__(self, files: Sequence[DataFile]):
        """Raises RequestError for a file that is not Arrow IPC."""
        self._open = functools.lru_cache(_MAX_OPEN)(_Batches)
        super().__init__("arrow", files, [self._open(file).sizes() for file in files])

    def close(self) -> None:
        super().close()
        self._open.cache_clear()

    def _group(self, shard: int, group: int) -> pa.Table:
        import pyarrow as pa

        batch = self._open(self._files[shard]).read(group)
        # Wrong offsets in mapped memory would read out of bounds.
        batch.validate(full=True)
        return pa.Table.from_batches([batch])


class _Batches:
    """The record batches of one file or stream."""

    def __init__(self, file: DataFile):
        import pyarrow as pa

        self._path = file.path
        self._blob, self._source = open_source(file)
        self._stream: list[pa.RecordBatch] | None = None
        try:
            if bytes(self._blob.window(0, min(self._blob.size, len(_MAGIC)))) == _MAGIC:
                self._file = pa.ipc.open_file(self._source)
            else:
                self._stream = list(pa.ipc.open_stream(self._source))
        except read_errors() as e:
            raise self._unreadable(e) from e

    def sizes(self) -> list[int]:
        import pyarrow as pa

        if self._stream is not None:
            return [batch.num_rows for batch in self._stream]
        # Of compressed batches only the first column is decompressed.
        options = pa.ipc.IpcReadOptions(included_fields=[0] if len(self._file.schema) else [])
        try:
            file = pa.ipc.open_file(self._source, options=options)
            return [file.get_batch(i).num_rows for i in range(file.num_record_batches)]
        except read_errors() as e:
            raise self._unreadable(e) from e

    def read(self, i: int) -> pa.RecordBatch:
        self._blob.window(0, 0)  # raises if the file has changed
        return self._file.get_batch(i) if self._stream is None else self._stream[i]

    def _unreadable(self, error: Exception) -> RequestError:
        return RequestError(f"{self._path} is not a readable Arrow file: {first_line(error)}")


def write(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Writes an Arrow IPC file; the number of records."""
    import pyarrow as pa

    n = 0
    writer: pa.RecordBatchFileWriter | None = None
    try:
        for table in groups(records):
            if writer is None:
                writer = pa.ipc.new_file(str(path), table.schema)
            writer.write_table(table)
            n += table.num_rows
        if writer is None:
            writer = pa.ipc.new_file(str(path), pa.schema([]))
    finally:
        if writer is not None:
            writer.close()
    return n
