"""Vocabulary files: found under the data root or at a URL, and parsed once in a process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

from raylingvo.data.records.files import DataFile, find
from raylingvo.errors import RequestError

T = TypeVar("T")


def find_one(path: str) -> DataFile:
    """The one file that `path` names: a path relative to RAYLINGVO_DATA, a URL, or a glob. Raises RequestError."""
    files = find(path)
    if len(files) != 1:
        raise RequestError(f"{path} must match one file; it matches {len(files)}: {files[0].path}, {files[1].path}, ..")
    return files[0]


def load(path: str, parse: Callable[..., T], *args: bool) -> T:
    """`parse(content, name, *args)` of the file that `path` names, where `name` is for error messages.

    The result is shared by all that load the same state (size and time of change) of the file. `parse` must be a
    function of a module. Raises RequestError if there is no such file, and what `parse` raises.
    """
    return _load(find_one(path), parse, *args)


# Two threads that miss at the same time both parse; a lock, held while another process is forked, would be worse.
@functools.lru_cache(maxsize=32)
def _load(file: DataFile, parse: Callable[..., T], *args: bool) -> T:
    return parse(bytes(file.open().window(0, file.size)), file.path, *args)


def lines(content: bytes) -> list[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers from 1. Only a newline ends a line: a carriage return stays."""
    return [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line]
