"""Files of records, on this machine or behind fsspec: which there are, and ranges of their bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import mmap
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from raylingvo.data import paths
from raylingvo.errors import RequestError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# What tells versions of a remote file apart; each storage has some of them. The second line: HTTP, FTP, GitHub.
# fmt: off
_VERSION_KEYS = (
    "mtime", "LastModified", "last_modified", "updated", "created", "ETag", "etag", "generation",
    "Last-Modified", "Content-MD5", "Digest", "modify", "sha",
)
# fmt: on


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFile:
    """One file as it was when it was listed.

    path: absolute, or a URL. size: bytes. version: changes when the content does (for a local file its time of change
    in nanoseconds). filesystem: fsspec's, where `key` names the file; None for local files.
    """

    path: str
    size: int
    version: str
    filesystem: AbstractFileSystem | None = None
    key: str = ""

    def open(self) -> Blob:
        """Raises RequestError if the file is gone, unreadable, or has changed since it was listed."""
        return LocalBlob(self) if self.filesystem is None else RemoteBlob(self)

    def changed(self) -> RequestError:
        return RequestError(f"{self.path} has changed while it was in use; open it again")


class Blob(Protocol):
    """Random access to the bytes of a file."""

    size: int

    def window(self, start: int, stop: int) -> memoryview | bytes:
        """Bytes [start, stop), not copied where that can be avoided."""
        ...

    def read_many(self, starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
        """The ranges [start, stop), all of them inside the file. Raises RequestError if the file has changed."""
        ...


class LocalBlob:
    """A mapped file. It is unmapped when nobody holds the blob any more."""

    def __init__(self, file: DataFile):
        self.size = file.size
        self._file = file
        with reading(file.path), Path(file.path).open("rb") as opened:
            status = os.fstat(opened.fileno())
            if (status.st_size, str(status.st_mtime_ns)) != (file.size, file.version):
                raise file.changed()
            # An empty file cannot be mapped.
            self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) if file.size else None

    def window(self, start: int, stop: int) -> memoryview | bytes:
        self._check()
        return b"" if self._map is None else memoryview(self._map)[start:stop]

    def read_many(self, starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
        self._check()
        mapped = self._map
        return [] if mapped is None else [mapped[a:b] for a, b in zip(starts, stops, strict=True)]

    def _check(self) -> None:
        # Touching a page behind the end of a file that was cut meanwhile would kill the process (SIGBUS).
        if self._map is not None and self._map.size() != self.size:
            raise self._file.changed()


class RemoteBlob:
    """A file behind fsspec; `read_many` asks for all ranges at once."""

    def __init__(self, file: DataFile):
        assert file.filesystem is not None
        self.size = file.size
        self._file = file
        self._filesystem = file.filesystem

    def window(self, start: int, stop: int) -> bytes:
        # Some servers refuse to give a range without bytes.
        return self.read_many([start], [stop])[0] if start < stop else b""

    def read_many(self, starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
        with reading(self._file.path):
            found = self._filesystem.cat_ranges(
                [self._file.key] * len(starts), list(starts), list(stops), on_error="raise"
            )
        surplus = [len(x) - (b - a) for x, a, b in zip(found, starts, stops, strict=True)]
        if max(surplus, default=0) > 0:  # as Python's own http.server
            raise RequestError(f"{self._file.path}: its server gives whole files only; copy the file to this machine")
        if any(surplus):
            raise self._file.changed()
        return found


class MemoryBlob:
    """Bytes in memory: a file once it is decompressed."""

    def __init__(self, content: bytes):
        self.size = len(content)
        self._content = content

    def window(self, start: int, stop: int) -> memoryview:
        return memoryview(self._content)[start:stop]

    def read_many(self, starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
        return [self._content[a:b] for a, b in zip(starts, stops, strict=True)]


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turns what an operating system or a storage driver raises into a RequestError of one line that names `path`."""
    try:
        yield
    except OSError as e:
        raise RequestError(f"cannot read {path}: {e.strerror or first_line(e)}") from e


def first_line(error: Exception) -> str:
    """The first line of an error's text, or the name of its type if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def find(pattern: str) -> list[DataFile]:
    """The files that one pattern names: a path, a URL, or either with `*`, `?`, `[...]` or `**`.

    A path is relative to RAYLINGVO_DATA. A name that exists as it stands is that file, whatever characters it has.
    Raises RequestError if there is none, or if the pattern names a folder.
    """
    filesystem, key = locate(pattern)
    return _find_local(key) if filesystem is None else _find_remote(pattern, filesystem, key)


def locate(path: str) -> tuple[AbstractFileSystem | None, str]:
    """(None, absolute local path), or (fsspec's filesystem, key) for a URL. Raises RequestError without its driver."""
    if "://" not in path and "::" not in path:
        try:
            return None, str(paths.resolve(path))
        except RuntimeError as e:  # ~user of nobody
            raise RequestError(f"{path}: {first_line(e)}") from e
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    try:
        filesystem, key = fsspec.url_to_fs(path)
    except ImportError as e:
        raise RequestError(f"cannot open {path}: {first_line(e)}; run: pip install {_package(path, e)}") from e
    except ValueError as e:
        raise RequestError(f"cannot open {path}: {first_line(e)}") from e
    # Local files are mapped, whichever way they are spelled.
    return (None, str(key)) if isinstance(filesystem, LocalFileSystem) else (filesystem, str(key))


def _package(url: str, error: ImportError) -> str:
    """The pip package with the driver of a URL: the one that fsspec's registry imports, or what was missing."""
    from fsspec.registry import known_implementations

    protocol = url.partition("://")[0].rpartition("::")[2]
    module = known_implementations[protocol]["class"].partition(".")[0]
    return module if module != "fsspec" else (error.name or f"'fsspec[{protocol}]'")


def _find_local(path: str) -> list[DataFile]:
    with reading(path):
        if Path(path).is_dir():
            raise RequestError(f"{path} is a folder; name its files: {path.rstrip('/')}/*")
        if Path(path).exists():
            return [_listed(path)]
        if not glob.has_magic(path):
            raise paths.not_found(path)
        found = [file for file in map(_listed_or_folder, sorted(_glob(path))) if file]
    if not found:
        raise RequestError(f"no file matches {path}; RAYLINGVO_DATA={paths.data_root()}")
    return found


def _glob(path: str) -> list[str]:
    return glob.glob(path, recursive=True)  # noqa: PTH207 - Path.glob knows no absolute patterns


def _listed_or_folder(path: str) -> DataFile | None:
    return None if Path(path).is_dir() else _listed(path)


def _listed(path: str) -> DataFile:
    with reading(path):
        status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise RequestError(f"{path} is not a plain file; records need random access")
    return DataFile(path=path, size=status.st_size, version=str(status.st_mtime_ns))


def _find_remote(url: str, filesystem: AbstractFileSystem, key: str) -> list[DataFile]:
    try:
        filesystem.invalidate_cache()
        found = _infos(filesystem, key)
    # Every driver has exceptions of its own (botocore's, gcsfs's, aiohttp's); all mean that the request failed.
    except Exception as e:
        raise RequestError(f"cannot list {url}: {first_line(e)}") from e
    files = [_remote_file(filesystem, name, info) for name, info in sorted(found.items()) if info["type"] == "file"]
    if not files:
        reason = f"{url} is a folder; name its files: {url.rstrip('/')}/*" if found else f"no file matches {url}"
        raise RequestError(reason)
    return files


def _infos(filesystem: AbstractFileSystem, key: str) -> dict[str, dict[str, Any]]:
    try:
        return {key: filesystem.info(key)}
    except FileNotFoundError:
        return cast(dict[str, dict[str, Any]], filesystem.glob(key, detail=True)) if glob.has_magic(key) else {}


def _remote_file(filesystem: AbstractFileSystem, key: str, info: Mapping[str, Any]) -> DataFile:
    url = filesystem.unstrip_protocol(key)
    if info.get("size") is None:
        raise RequestError(f"{url}: its server does not tell the size; copy the file to this machine")
    version = ",".join(f"{name}={info[name]}" for name in _VERSION_KEYS if name in info)
    return DataFile(path=url, size=info["size"], version=version, filesystem=filesystem, key=key)
