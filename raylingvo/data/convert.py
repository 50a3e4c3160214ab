"""Records of any format, rewritten in any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from raylingvo.data.records import Records, open_records, write_records
from raylingvo.data.tf_example import ExampleError, decode_example

_CHUNK = 1024  # records read at once


def convert(
    pattern: str,
    target: str,
    format: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Writes the records of a pattern to one file; returns how many.

    target, format: as for `write_records`. Serialized tf.Examples become dicts of their features where the target holds
    dicts. progress is called with (records done, all). Raises RequestError for what cannot be read or written.
    """
    records = open_records(pattern)
    return write_records(target, _read(records, progress), format)


def as_fields(record: Any) -> Any:
    """The features of a serialized tf.Example as a dict of arrays and lists; any other record as it is."""
    # Every tf.Example with a feature begins with the tag of the only field it has.
    if not isinstance(record, bytes) or not record.startswith(b"\n"):
        return record
    try:
        return decode_example(record)
    except ExampleError:
        return record


def _read(records: Records, progress: Callable[[int, int], None]) -> Iterator[Any]:
    for start in range(0, len(records), _CHUNK):
        chunk = np.arange(start, min(start + _CHUNK, len(records)))
        yield from map(as_fields, records.read(chunk))
        progress(int(chunk[-1]) + 1, len(records))
