"""What a pattern means: its format, and the files that it names."""

from __future__ import annotations

import re

from raylingvo.data.records.files import DataFile, find
from raylingvo.errors import RequestError

FORMATS = ("text", "jsonl", "tfrecord", "tfrecord_gzip", "parquet", "arrow", "array_record", "npz", "iota")

# Up to the first colon, unless a slash comes before it. A URL (`gs://`, `simplecache::gs://`) has no prefix.
_PREFIX = re.compile(r"([^/:,]*):(?!//|:)")
# `name@8`, `name@*`, and what follows: not part of a folder's name, not a longer number.
_SHARDS = re.compile(r"(?P<name>.+)@(?P<count>\*|\d+)(?P<suffix>(?:[^/@\d][^/@]*)?)")
_MAX_SHARDS = 99_999


def split_prefix(pattern: str) -> tuple[str, str]:
    """(`text`, `a*.en`) of `text:a*.en`; the first is empty without a prefix. Raises RequestError if it is unknown."""
    match = _PREFIX.match(pattern)
    if match is None:
        return "", pattern
    if match[1] not in FORMATS:
        raise RequestError(f"no record format {match[1]!r} (in {pattern!r}); there are {', '.join(FORMATS)}")
    return match[1], pattern[match.end() :]


def shards(name: str) -> str:
    """The glob of sharded names: `train@512.gz` is `train-?????-of-00512.gz`, `train@*` is `train-?????-of-?????`."""
    match = _SHARDS.fullmatch(name)
    if match is None:
        return name
    if match["count"] == "*":
        of = "?????"
    elif 1 <= int(match["count"]) <= _MAX_SHARDS:
        of = f"{int(match['count']):05d}"
    else:
        raise RequestError(f"the number of shards must be 1 to {_MAX_SHARDS} (got {match['count']} in {name!r})")
    return f"{match['name']}-?????-of-{of}{match['suffix']}"


def expand(pattern: str) -> tuple[str, list[DataFile]]:
    """The format that the pattern's prefix names (empty: none) and its files, sorted by name, each once.

    pattern: names separated by commas; each a path, a glob, or `name@N[suffix]`; the first may have a prefix, which
    holds for all. Raises RequestError for a name without a file, or formats that differ.
    """
    format = ""
    files: dict[str, DataFile] = {}
    for position, part in enumerate(pattern.split(",")):
        prefix, name = split_prefix(part.strip())
        if position == 0:
            format = prefix
        elif prefix not in ("", format):
            raise RequestError(f"{pattern!r} mixes the formats {format or 'of its endings'} and {prefix}; open each")
        if not name:
            raise RequestError(f"a pattern must name files (got {pattern!r})")
        files.update((file.path, file) for file in find(shards(name)))
    return format, [files[path] for path in sorted(files)]
