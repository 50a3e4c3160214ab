"""Writing record files of every format, whole or not at all."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from raylingvo.data import tf_example
from raylingvo.data.records import array_record, arrow, npz, parquet, text, tfrecord
from raylingvo.data.records.files import first_line, locate
from raylingvo.data.records.formats import by_name
from raylingvo.data.records.patterns import FORMATS
from raylingvo.errors import RequestError

# The field of a record that is nothing but bytes, where records are dicts.
RECORD_FIELD = "record"
_LINE_FORMATS = ("text", "jsonl")


def write_records(path: str | os.PathLike[str], records: Iterable[Any], format: str = "") -> int:
    """Writes records to one file and returns their number. Until it is whole, `path` is as it was.

    path: relative to RAYLINGVO_DATA, or a URL; its folder is made if need be. format: any but iota; empty: that of the
    ending. A path that ends in .gz is gzipped (text, jsonl, tfrecord). Records are streamed, but for npz.

    Records may be bytes or dicts for any format. Bytes become dicts of one field, `record`, and such dicts bytes. Other
    dicts become a tf.Example (tfrecord, array_record), or for text the one str or bytes that they have. jsonl stores
    bytes as UTF-8, and npz needs the same fields, shapes and dtypes in all records.

    Raises RequestError if the format does not hold a record, or the file cannot be written.
    """
    path = os.fspath(path)
    format = format or by_name(path)
    if format not in FORMATS or format == "iota":
        known = ", ".join(name for name in FORMATS if name != "iota")
        raise RequestError(f"the format of {path} must be one of {known} (got {format!r})")
    compressed = format == "tfrecord_gzip" or path.endswith(".gz")
    with _whole_file(path) as temporary:
        return _write(temporary, records, format, compressed)


def _write(path: Path, records: Iterable[Any], format: str, compressed: bool) -> int:
    if format in ("text", "jsonl", "tfrecord", "tfrecord_gzip"):
        with _stream(path, compressed) as file:
            if format == "text":
                return text.write(file, _numbered(records, _line))
            if format == "jsonl":
                return text.write(file, _numbered(records, _json_line))
            return tfrecord.write(file, _numbered(records, _serialized))
    if compressed:
        raise RequestError(f"{format} cannot be gzipped; leave .gz out of the name")
    if format == "array_record":
        return array_record.write(path, _numbered(records, _serialized))
    writers = {"parquet": parquet.write, "arrow": arrow.write, "npz": npz.write}
    return writers[format](path, _numbered(records, _fields))


def _numbered(records: Iterable[Any], convert: Callable[[Any], Any]) -> Iterator[Any]:
    """The converted records; a ValueError of `convert` becomes a RequestError that names the record."""
    for number, record in enumerate(records):
        try:
            converted = convert(record)
        except ValueError as e:
            raise RequestError(f"cannot write record {number}: {first_line(e)}") from e
        yield converted


def _raw(record: Any) -> bytes | None:
    """The bytes of a record that is nothing else; None for other dicts."""
    if isinstance(record, dict):
        if record.keys() != {RECORD_FIELD} or not isinstance(record[RECORD_FIELD], bytes | str):
            return None
        record = record[RECORD_FIELD]
    if isinstance(record, str):
        return record.encode()
    if isinstance(record, bytes):
        return record
    raise ValueError(f"it must be bytes or a dict (got {type(record).__name__})")


def _line(record: Any) -> bytes:
    line = _raw(record)
    if line is None:
        texts = [value for value in record.values() if isinstance(value, bytes | str)]
        if len(texts) != 1 or len(record) != 1:
            raise ValueError(f"text has lines, not the fields {', '.join(record) or '(none)'}; jsonl has")
        line = texts[0].encode() if isinstance(texts[0], str) else texts[0]
    if b"\n" in line:
        raise ValueError("text cannot hold a record with a line feed in it; jsonl can")
    return line


def _json_line(record: Any) -> bytes:
    try:
        return json.dumps(_fields(record), ensure_ascii=False, default=_json_value).encode()
    except (TypeError, RecursionError) as e:
        raise ValueError(first_line(e)) from e


def _json_value(value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as e:
            raise ValueError("JSON cannot hold bytes that are not UTF-8; parquet, arrow and npz can") from e
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise ValueError(f"JSON cannot hold a {type(value).__name__}")


def _serialized(record: Any) -> bytes:
    raw = _raw(record)
    return tf_example.encode_example(record) if raw is None else raw


def _fields(record: Any) -> dict[str, Any]:
    if isinstance(record, dict):
        return record
    return {RECORD_FIELD: _raw(record)}


@contextlib.contextmanager
def _stream(path: Path, compressed: bool) -> Iterator[BinaryIO]:
    with path.open("wb") as file:
        if not compressed:
            yield file
            return
        # Without name and time in the header, the same records make the same file.
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as stream:
            yield cast(BinaryIO, stream)


@contextlib.contextmanager
def _whole_file(path: str) -> Iterator[Path]:
    """A temporary file that becomes `path` when the block ends without an exception, and else goes."""
    filesystem, key = locate(path)
    try:
        if filesystem is None:
            target = Path(key)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
            try:
                yield temporary
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory(prefix="raylingvo-records-") as folder:
            temporary = Path(folder) / "records"
            yield temporary
            try:
                filesystem.makedirs(filesystem._parent(key), exist_ok=True)
                # Storages show an upload when it is whole.
                filesystem.put_file(str(temporary), key)
            # Every driver has exceptions of its own; all mean that the upload failed.
            except Exception as e:
                raise RequestError(f"cannot write {path}: {first_line(e)}") from e
    except OSError as e:
        raise RequestError(f"cannot write {path}: {e.strerror or first_line(e)}") from e
