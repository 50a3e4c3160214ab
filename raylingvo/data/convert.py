"""Records of any format, rewritten in any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from raylingvo.data.fields import as_fields
from raylingvo.data.records import Records, open_records, write_records
from raylingvo.data.records.files import locate
from raylingvo.data.records.formats import by_name

_CHUNK = 1024  # records read at once
# Formats whose records are dicts: elsewhere a serialized tf.Example is at home as it is.
_OF_FIELDS = ("jsonl", "parquet", "arrow", "npz")


def convert(
    pattern: str,
    target: str,
    format: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Writes the records of a pattern to one file; returns how many.

    target, format: as for `write_records`. Serialized tf.Examples become dicts of their features where the target holds
    dicts; to any other target bytes are copied as they are. progress is called with (records done, all). Raises
    RequestError for what cannot be read or written.
    """
    records = open_records(pattern)
    as_written = as_fields if (format or by_name(target)) in _OF_FIELDS else _as_it_is
    return write_records(target, _read(records, as_written, progress), format)


def written_path(target: str) -> str:
    """Where `convert` writes to: an absolute path, or a URL as it is."""
    filesystem, path = locate(target)
    return path if filesystem is None else target


def _as_it_is(record: Any) -> Any:
    return record


def _read(records: Records, as_written: Callable[[Any], Any], progress: Callable[[int, int], None]) -> Iterator[Any]:
    for start in range(0, len(records), _CHUNK):
        chunk = np.arange(start, min(start + _CHUNK, len(records)))
        yield from map(as_written, records.read(chunk))
        progress(int(chunk[-1]) + 1, len(records))
