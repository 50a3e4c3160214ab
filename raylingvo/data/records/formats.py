"""Which format a file has: by its ending, or by how it begins."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from raylingvo.data.records.files import DataFile
from raylingvo.data.records.inflate import begins
from raylingvo.data.records.tfrecord import is_header
from raylingvo.errors import RequestError

_ENDINGS = {
    ".txt": "text",
    ".text": "text",
    ".tsv": "text",
    ".csv": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".tfrecord": "tfrecord",
    ".tfrecords": "tfrecord",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".array_record": "array_record",
    ".arrayrecord": "array_record",
    ".npz": "npz",
}
# `x.tfrecord-00000-of-00008` has the ending of `x.tfrecord`.
_SHARD = re.compile(r"-\d+-of-\d+$")
_COMPRESSIBLE = ("text", "jsonl", "tfrecord")
_SNIFFED_BYTES = 4096
# Control characters that text has: tab, line feed, vertical tab, form feed, carriage return.
_TEXT_CONTROLS = set("\t\n\v\f\r")


def by_name(path: str) -> str:
    """The format that a file's ending says, empty for no known one. `.gz` may follow where the format allows it."""
    name = _SHARD.sub("", path.rpartition("/")[2].lower())
    compressed = name.endswith(".gz")
    name = _SHARD.sub("", name.removesuffix(".gz"))
    format = next((format for ending, format in _ENDINGS.items() if name.endswith(ending)), "")
    if compressed and format not in ("", *_COMPRESSIBLE):
        raise RequestError(f"{path}: {format} cannot be gzipped; decompress it first")
    return format


def of_files(pattern: str, files: Sequence[DataFile]) -> str:
    """The one format of all files. Raises RequestError if it cannot be told, or if there are several."""
    named = {by_name(file.path): file for file in files}
    if "" in named:
        unnamed = [file for file in files if not by_name(file.path)]
        # One stands for the others: whole sets of shards are written alike. An empty file is of any format.
        sample = next((file for file in unnamed if file.size), None)
        del named[""]
        if sample is not None:
            named[_by_content(sample)] = sample
        elif not named:
            return "text"
    if len(named) > 1:
        raise RequestError(f"{pattern!r} mixes the formats {' and '.join(sorted(named))}; open each by itself")
    return next(iter(named))


def _by_content(file: DataFile) -> str:
    head = begins(file, _SNIFFED_BYTES)
    if is_header(head[:12]):
        return "tfrecord"
    if _is_text(head):
        return "text"
    raise RequestError(
        f"cannot tell the format of {file.path}; write it before the name, as in tfrecord:{file.path} "
        "(or text, jsonl, tfrecord_gzip, parquet, arrow, array_record, npz)"
    )


def _is_text(head: bytes) -> bool:
    try:
        # Incremental: the last character may be cut.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        return False
    return (
        bool(text)
        and all(c.isprintable() or c.isspace() for c in text)
        and not any(c < " " and c not in _TEXT_CONTROLS for c in text)
    )
