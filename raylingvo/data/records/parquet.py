"""Parquet files, by row groups."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylingvo.data.records.files import Blob, DataFile, first_line
from raylingvo.data.records.tables import TableRecords, groups, open_source, read_errors
from raylingvo.errors import RequestError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_MAX_OPEN = 64
_THREADS = 8


class ParquetRecords(TableRecords):
    """Rows as dicts. The checksums of pages are verified where a file has them."""

    def __init__(self, files: Sequence[DataFile]):
        """Raises RequestError for a file that is not Parquet."""
        self._open = functools.lru_cache(_MAX_OPEN)(_open)
        with ThreadPoolExecutor(min(_THREADS, len(files))) as pool:
            sizes = list(pool.map(self._group_sizes, files))
        super().__init__("parquet", files, sizes)

    def close(self) -> None:
        super().close()
        self._open.cache_clear()

    def _group_sizes(self, file: DataFile) -> list[int]:
        metadata = self._open(file)[1].metadata
        return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def _group(self, shard: int, group: int) -> pa.Table:
        blob, file = self._open(self._files[shard])
        blob.window(0, 0)  # raises if the file has changed
        return file.read_row_group(group)


def _open(file: DataFile) -> tuple[Blob, pq.ParquetFile]:
    import pyarrow.parquet as pq

    blob, source = open_source(file)
    try:
        return blob, pq.ParquetFile(source, page_checksum_verification=True)
    except read_errors() as e:
        raise RequestError(f"{file.path} is not a readable Parquet file: {first_line(e)}") from e


def write(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Writes a Parquet file with checksums; the number of records."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = 0
    writer: pq.ParquetWriter | None = None
    try:
        for table in groups(records):
            if writer is None:
                writer = pq.ParquetWriter(path, table.schema, compression="zstd", write_page_checksum=True)
            writer.write_table(table)
            n += table.num_rows
        if writer is None:
            writer = pq.ParquetWriter(path, pa.schema([]))
    finally:
        if writer is not None:
            writer.close()
    return n
