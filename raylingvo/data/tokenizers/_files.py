"""Vocabulary files: found under the data root or at a URL, and parsed once in a process."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TypeVar

from raylingvo.data.records.files import DataFile, find
from raylingvo.errors import RequestError

T = TypeVar("T")

# What was found last, by name and data root. To look a name up takes longer than to encode a sentence, and of a URL a
# round trip.
_last: dict[tuple[str | None, ...], DataFile] = {}


def find_one(path: str) -> DataFile:
    """The one file that `path` names: a path relative to RAYLINGVO_DATA, a URL, or a glob. Raises RequestError."""
    files = find(path)
    if len(files) != 1:
        raise RequestError(f"{path} must match one file; it matches {len(files)}: {files[0].path}, {files[1].path}, ..")
    _last[_name(path)] = files[0]
    return files[0]


def _name(path: str) -> tuple[str | None, ...]:
    # What `paths.data_root` looks at: 20 times as fast as the call.
    return path, os.environ.get("RAYLINGVO_DATA"), os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME")


def _known(path: str) -> DataFile:
    """The same if it was found before: a local file as it is now, one behind a URL as it was found last."""
    file = _last.get(_name(path))
    if file is None:
        return find_one(path)
    if file.filesystem is not None:
        return file
    try:
        status = os.stat(file.path)  # noqa: PTH116 - half the time of Path's
    except OSError:
        return find_one(path)  # which says what is wrong
    return file if (status.st_size, str(status.st_mtime_ns)) == (file.size, file.version) else find_one(path)


def load(path: str, parse: Callable[..., T], *args: bool) -> T:
    """`parse(content, name, *args)` of the file that `path` names, where `name` is for error messages.

    The result is shared by all that load the same state (size and time of change) of the file; the state of one
    behind a URL is that of the last `find_one`. `parse` must be a function of a module. Raises RequestError if there is
    no such file, and what `parse` raises.
    """
    return _load(_known(path), parse, *args)


# Two threads that miss at the same time both parse; a lock, held while another process is forked, would be worse.
@functools.lru_cache(maxsize=32)
def _load(file: DataFile, parse: Callable[..., T], *args: bool) -> T:
    return parse(bytes(file.open().window(0, file.size)), file.path, *args)


def lines(content: bytes) -> list[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers from 1. Only a newline ends a line: a carriage return stays."""
    return [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line]
