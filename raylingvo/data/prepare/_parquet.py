"""Parquet files, whole or not at all, written row by row in bounded memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylingvo.errors import RequestError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# A reader fetches whole row groups: 4,096 sentences are about 0.5 MB.
TEXT_ROWS = 4096


@contextlib.contextmanager
def atomic(file: Path) -> Iterator[Path]:
    """A temporary path to write to, which becomes `file` when the block succeeds and is removed when it does not.

    Raises RequestError that names `file` for an OSError of the block.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as e:
        raise RequestError(f"cannot write {file}: {e}; RAYLINGVO_DATA names the folder for data") from e


class Rows:
    """The rows of a Parquet file that `write` makes."""

    def __init__(self, file: Path, writer: pq.ParquetWriter, rows_per_group: int) -> None:
        self.count = 0
        self._file = file
        self._writer = writer
        self._schema = writer.schema
        self._rows_per_group = rows_per_group
        self._columns: list[list[Any]] = [[] for _ in self._schema.names]
        self._groups = 0  # written
        self._parts: list[tuple[Any, int]] = []  # key, first row group

    def append(self, *values: Any) -> None:
        """A row: a value for each column of the schema."""
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)
        self.count += 1
        if len(self._columns[0]) == self._rows_per_group:
            self.flush()

    def part(self, key: Any) -> None:
        """What is appended from here on belongs to `key`, until the next call; the file has its parts by ascending key.

        For archives, which list their files in any order. Parts that come in order cost nothing; else the file is
        written twice.
        """
        self.flush()
        self._parts.append((key, self._groups))

    def flush(self) -> None:
        """Ends the row group."""
        import pyarrow as pa

        if not self._columns[0]:
            return
        arrays = [pa.array(column, field.type) for column, field in zip(self._columns, self._schema, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._columns = [[] for _ in self._schema.names]
        self._groups += 1

    def order(self) -> list[int] | None:
        """The row groups in the order that the file should have; None if they have it."""
        ends = [first for _, first in self._parts[1:]] + [self._groups]
        groups = [range(first, end) for (_, first), end in zip(self._parts, ends, strict=True)] if self._parts else []
        by_key = sorted(range(len(groups)), key=lambda i: self._parts[i][0])
        return None if by_key == [*range(len(groups))] else [group for i in by_key for group in groups[i]]

    def line(self, noun: str) -> str:
        """What was written, once it is: `.../train.parquet: 20 pairs, 0.1 MB`."""
        return f"{self._file}: {self.count} {noun}, {self._file.stat().st_size / 1e6:.1f} MB"


@contextlib.contextmanager
def write(
    file: Path, schema: pa.Schema, rows_per_group: int, compression: str | dict[str, str] = "zstd"
) -> Iterator[Rows]:
    """Writes `file` with the rows that the block appends; atomically.

    schema: its columns. rows_per_group: as many are held in memory, and fetched at once by a reader that wants one.
    compression: of all columns, or of each. Raises RequestError if the file cannot be written.
    """
    import pyarrow.parquet as pq

    def create(path: Path) -> pq.ParquetWriter:
        options: dict[str, Any] = {"compression": compression, "use_dictionary": False}
        return pq.ParquetWriter(path, schema, **options)

    with atomic(file) as temporary:
        with create(temporary) as writer:
            rows = Rows(file, writer, rows_per_group)
            yield rows
            rows.flush()
        if (order := rows.order()) is not None:
            ordered = temporary.with_suffix(".ordered")
            try:
                with pq.ParquetFile(temporary) as source, create(ordered) as writer:
                    for group in order:
                        writer.write_table(source.read_row_group(group))
                ordered.replace(temporary)
            finally:
                ordered.unlink(missing_ok=True)
