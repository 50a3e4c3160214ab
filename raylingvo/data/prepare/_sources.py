"""Streams of the files that users have, plain, gzipped or in tar.gz archives: every defect is a RequestError by name.

Members of archives are only ever read as streams: their names never become paths on disk.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from raylingvo.errors import RequestError
from raylingvo.monitor.progress import Report, progress_bar

# No sentence of a published corpus comes near: what has a longer line is another kind of file.
MAX_LINE_BYTES = 1 << 20
_CHUNK = 1 << 20
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz")


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...
    def readline(self, size: int, /) -> bytes: ...


class Source:
    """Bytes to read once, forward.

    where: the name for error messages. Each method raises RequestError if what it reads is damaged.
    """

    def __init__(self, stream: _Stream, where: str) -> None:
        self.where = where
        self._stream = stream

    def lines(self) -> Iterator[str]:
        """The lines, without their ends (\\n or \\r\\n only: the text may have other separators inside a sentence)."""
        number = 0
        while True:
            with _named(self.where):
                line = self._stream.readline(MAX_LINE_BYTES)
            if not line:
                return
            number += 1
            if not line.endswith(b"\n") and len(line) == MAX_LINE_BYTES:
                raise RequestError(f"{self.where} is not a text file: line {number} has over {MAX_LINE_BYTES} bytes")
            try:
                yield line.decode().removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as e:
                raise RequestError(f"{self.where} is not UTF-8: line {number}: {e.reason} at byte {e.start}") from e

    def read(self, limit: int) -> bytes:
        """All bytes, of which there may be `limit`."""
        with _named(self.where):
            content = self._stream.read(limit + 1)
        if len(content) > limit:
            raise RequestError(f"{self.where} has over {limit} bytes: it is not what its name says")
        return content

    def copy_to(self, sink: BinaryIO) -> None:
        while True:
            with _named(self.where):
                chunk = self._stream.read(_CHUNK)
            if not chunk:
                return
            sink.write(chunk)


@contextlib.contextmanager
def opened(file: Path, report: Report | None = None) -> Iterator[Source]:
    """The content of a file, gzipped or not whatever its name. `report` is told the bytes read from the disk."""
    with _unzipped(file, report) as stream:
        yield Source(stream, str(file))


def members(archive: Path) -> Generator[tuple[PurePosixPath, Source]]:
    """The regular files of a tar.gz with their names, in its order; each to be read before the next is asked for.

    Shows progress, so close it. The archive must be read to its end, which also verifies its checksum.
    """
    where, size = str(archive), archive.stat().st_size
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(progress_bar(f"reading {archive.name}", size, in_bytes=True))
        stream = stack.enter_context(_unzipped(archive, report))
        with _named(where):
            tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r|", bufsize=_CHUNK))
        while True:
            with _named(where):
                info = tar.next()
                # All are kept otherwise: 1 kB for each of the 300,000 of LibriSpeech.
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
                content = tar.extractfile(info) if info and info.isreg() and not info.issparse() else None
            if info is None:
                break
            if content is not None:
                yield PurePosixPath(info.name), Source(content, f"{where}: {_printable(info.name)}")
        with _named(where):
            while stream.read(_CHUNK):
                pass


@contextlib.contextmanager
def _unzipped(file: Path, report: Report | None) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        with _named(str(file)):
            raw = stack.enter_context(io.BufferedReader(_Reported(file, report), _CHUNK))
            gzipped = raw.peek(2)[:2] == b"\x1f\x8b"
        yield stack.enter_context(gzip.GzipFile(fileobj=raw)) if gzipped else raw


class _Reported(io.FileIO):
    def __init__(self, file: Path, report: Report | None) -> None:
        super().__init__(file)
        self._report = report

    def readinto(self, buffer) -> int | None:
        n = super().readinto(buffer)
        if self._report:
            self._report(self.tell())
        return n


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Turns the errors of reading into RequestErrors. To be held around reads only: not around what uses them."""
    try:
        yield
    except (EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile) as e:
        raise RequestError(f"{where} is damaged or cut short: {e}") from e
    except OSError as e:
        raise RequestError(f"cannot read {where}: {e.strerror or e}") from e


def _printable(name: str) -> str:
    """A name from an archive may have line ends and terminal codes."""
    return name if name.isprintable() else ascii(name)
