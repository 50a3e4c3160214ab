"""From a pattern to its records."""

from __future__ import annotations

from raylingvo.data.records.array_record import ArrayRecords
from raylingvo.data.records.arrow import ArrowRecords
from raylingvo.data.records.base import Records, fingerprint
from raylingvo.data.records.formats import of_files
from raylingvo.data.records.framed import FRAMINGS, FramedRecords
from raylingvo.data.records.iota import IotaRecords
from raylingvo.data.records.npz import NpzRecords
from raylingvo.data.records.parquet import ParquetRecords
from raylingvo.data.records.patterns import expand, split_prefix

_READERS = {"parquet": ParquetRecords, "arrow": ArrowRecords, "array_record": ArrayRecords, "npz": NpzRecords}


def open_records(pattern: str, *, allow_truncated: bool = False) -> Records:
    """The records of all files that `pattern` names, one file after another in the order of their names.

    pattern: names separated by commas, after an optional `format:`. A name is a path (relative to RAYLINGVO_DATA), a
    URL (gs://, s3://, memory://, whatever fsspec has a driver for), a glob (`*`, `?`, `[...]`, `**`), `name@8` for
    `name-?????-of-00008` or `name@*`; `name@8.gz` puts the suffix behind. `iota:100` needs no file. A file that several
    names match counts once.

    Formats: text (a record is a line), jsonl, tfrecord, tfrecord_gzip, parquet, arrow, array_record, npz. Without a
    prefix the ending tells the format, or for no known ending the content: TFRecord or UTF-8 text. Gzipped text, jsonl
    and tfrecord are told by their content; they are decompressed into memory, for they have no random access.

    allow_truncated: a TFRecord or gzipped file that breaks gives its records up to there, and a line in `problems`;
    without it, it raises CorruptRecordError. Damaged data behind an intact header raise in `read`, either way.

    Raises RequestError for a name without a file, an unknown format, or a file that is not of its format.
    """
    format, rest = split_prefix(pattern)
    if format == "iota":
        return IotaRecords(rest)
    format, files = expand(pattern)
    format = format or of_files(pattern, files)
    return FramedRecords(format, files, allow_truncated) if format in FRAMINGS else _READERS[format](files)


def files_fingerprint(pattern: str) -> str:
    """A hash over the names, sizes and times of change of the files that `pattern` names: they are listed, not opened.

    Raises RequestError for a name without a file, or an unknown format.
    """
    format, rest = split_prefix(pattern)
    return IotaRecords(rest).fingerprint if format == "iota" else fingerprint(*expand(pattern))
