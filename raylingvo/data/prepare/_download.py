"""Downloads of published files, from the first mirror that serves them with their checksum; whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import io
import os
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from raylingvo.errors import RequestError
from raylingvo.monitor.progress import progress_bar

_TIMEOUT_SECONDS = 30.0  # without a byte
_CHUNK = 1 << 20
_ALGORITHMS = {"md5": "MD5", "sha256": "SHA-256"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A file on the network.

    name: of the file. urls: where it is served, best first. checksum: `md5:` or `sha256:` and the digest in
    hexadecimal, of the file as it is served.
    """

    name: str
    urls: tuple[str, ...]
    checksum: str

    def __post_init__(self) -> None:
        if self.checksum.partition(":")[0] not in _ALGORITHMS:
            raise ValueError(f"checksum must start with md5: or sha256: (got {self.checksum!r})")


def content(file: Published, otherwise: str) -> bytes:
    """The bytes of a small file.

    otherwise: the advice for who has no network, as `get ... elsewhere and run: ...`. Raises RequestError if no mirror
    serves the file, or none with its checksum.
    """
    sink = io.BytesIO()
    _download(file, sink, otherwise)
    return sink.getvalue()


@contextlib.contextmanager
def folder(files: Sequence[Published], path: Path, otherwise: str) -> Iterator[Path]:
    """`path`, with all of `files` in it; they are deleted when the block has succeeded.

    When it has not, they stay: the next try downloads only what is missing or does not have its checksum. `otherwise`
    and errors: as for `content`; also RequestError if they cannot be written.
    """
    try:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise _cannot_write(path, e) from e
        for file in files:
            _complete(file, path / file.name, otherwise)
        yield path
        for file in files:
            (path / file.name).unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):  # not empty: something is left for the next try, or is not ours
            path.rmdir()
            path.parent.rmdir()


def _complete(file: Published, target: Path, otherwise: str) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if target.is_file() and _has_checksum(target, file.checksum):
            return
        with temporary.open("w+b") as sink:
            _download(file, sink, otherwise)
        temporary.replace(target)
    except OSError as e:
        raise _cannot_write(target, e) from e
    finally:
        temporary.unlink(missing_ok=True)


def _has_checksum(file: Path, checksum: str) -> bool:
    hasher = hashlib.new(checksum.partition(":")[0], usedforsecurity=False)
    with file.open("rb") as source, progress_bar(f"checking {file.name}", file.stat().st_size, in_bytes=True) as report:
        while chunk := source.read(_CHUNK):
            hasher.update(chunk)
            report(source.tell())
    return hasher.hexdigest() == checksum.partition(":")[2]


def _download(file: Published, sink: BinaryIO, otherwise: str) -> None:
    algorithm, _, expected = file.checksum.partition(":")
    failures = []
    for url in file.urls:
        sink.seek(0)
        sink.truncate()
        try:
            actual = _fetch(url, sink, algorithm)
        except (OSError, http.client.HTTPException) as e:
            failures.append(f"{url}: {e}")
            continue
        if actual == expected:
            return
        failures.append(f"{url}: {_ALGORITHMS[algorithm]} is {actual}, not {expected}")
    raise RequestError(f"cannot download {file.name} ({'; '.join(failures)}). Without a network, {otherwise}")


def _fetch(url: str, sink: BinaryIO, algorithm: str) -> str:
    """Copies what `url` serves; the digest of it."""
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
        length = response.headers.get("Content-Length")
        total = int(length) if length else None
        with progress_bar(f"downloading {url.rpartition('/')[2]}", total, in_bytes=True) as report:
            done = 0
            while chunk := response.read(_CHUNK):
                hasher.update(chunk)
                try:
                    sink.write(chunk)
                except OSError as e:  # our disk: no other mirror would help
                    raise _cannot_write(Path(getattr(sink, "name", url)), e) from e
                done += len(chunk)
                report(done)
    return hasher.hexdigest()


def _cannot_write(path: Path, error: OSError) -> RequestError:
    return RequestError(f"cannot write {path}: {error}; RAYLINGVO_DATA names the folder for data")
