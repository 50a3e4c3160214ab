"""Lines of text as they come: of a file, a pipe or a terminal, without waiting for more than there is."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from raylingvo.errors import RequestError

_CHUNK = 1 << 16  # bytes; what a pipe holds


class LineReader:
    """Reads UTF-8 lines from a file descriptor. It holds one chunk more than is asked for, however long the input."""

    def __init__(self, descriptor: int, name: str):
        """name: of the input, for errors."""
        self._descriptor, self._name = descriptor, name
        self._whole: deque[bytes] = deque()  # lines that have been read and not been taken
        self._begun: list[bytes] = []  # the parts of the next line
        self._ended = False
        self._num_taken = 0

    def take(self, limit: int) -> list[str]:
        """Waits for a line, and takes those that are there, at most `limit`, without their ends; [] at the end.

        A line ends with LF or CRLF; the last one may have no end, and the first a byte order mark before it.
        Raises RequestError if the input cannot be read, or the first line is not UTF-8. A later one that is not is left
        for the next call.
        """
        while len(self._whole) < limit and not self._ended and self._is_ready(wait=not self._whole):
            self._read()
        taken: list[str] = []
        while self._whole and len(taken) < limit:
            try:
                line = self._whole[0].removesuffix(b"\r")
                first = not self._num_taken and not taken
                taken.append((line.removeprefix(codecs.BOM_UTF8) if first else line).decode())
            except UnicodeDecodeError as error:
                if taken:
                    break
                number = self._num_taken + 1
                raise RequestError(f"--input {self._name}: line {number} is not UTF-8 ({error})") from error
            self._whole.popleft()
        self._num_taken += len(taken)
        return taken

    def _is_ready(self, *, wait: bool) -> bool:
        # A file is always ready. A signal, such as Ctrl-C, ends the waiting.
        return bool(select.select([self._descriptor], [], [], None if wait else 0)[0])

    def _read(self) -> None:
        try:
            chunk = os.read(self._descriptor, _CHUNK)
        except OSError as error:
            raise RequestError(f"--input {self._name}: cannot be read ({error.strerror})") from error
        first, *others = chunk.split(b"\n")
        self._begun.append(first)
        self._ended = not chunk
        if others or (self._ended and any(self._begun)):
            self._whole.append(b"".join(self._begun))
            self._whole.extend(others[:-1])
            self._begun = others[-1:]


@contextlib.contextmanager
def open_lines(name: str) -> Iterator[LineReader]:
    """The lines of a file, or of stdin for `-`. Raises RequestError if it cannot be read."""
    with contextlib.ExitStack() as opened:
        try:
            if name == "-" and sys.__stdin__ is None:  # another file may have its number by now
                raise RequestError("--input -: stdin is closed")
            descriptor = 0 if name == "-" else opened.enter_context(Path(name).open("rb", buffering=0)).fileno()
        except OSError as error:
            raise RequestError(f"--input {name}: cannot be read ({error.strerror})") from error
        yield LineReader(descriptor, name)
