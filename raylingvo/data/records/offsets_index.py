"""The user's cache of offsets: where the records of a file start, found once and kept until the file changes."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import zlib
from pathlib import Path

import numpy as np

from raylingvo.data.records.files import DataFile

logger = logging.getLogger(__name__)

_LAYOUT = 1  # raised when the meaning of a cached array changes
_STAMP = 3


def load(file: DataFile, format: str) -> np.ndarray | None:
    """The offsets that `save` kept for this file as it is now, i64[N + 1]; None if there are none, or not whole."""
    cached = _path(file, format)
    if cached is None:
        return None
    try:
        stamped = np.load(cached, allow_pickle=False)
    except FileNotFoundError:
        return None
    # NumPy reads a header as Python: a damaged one raises what it happens to make (SyntaxError, TokenError, ...).
    except Exception as e:
        logger.info("%s is unreadable and will be made again: %s", cached, e)
        return None
    if stamped.dtype != np.int64 or stamped.ndim != 1 or len(stamped) <= _STAMP:
        return None
    offsets = stamped[_STAMP:]
    return offsets if (stamped[:_STAMP] == _stamp(file, offsets)).all() else None


def save(file: DataFile, format: str, offsets: np.ndarray) -> None:
    """Keeps offsets. Where the cache cannot be written (a read-only home, a full disk) reading goes on without."""
    cached = _path(file, format)
    if cached is None:
        return
    # Two processes, or threads, may index one file at once: each writes its own, and either result is right.
    temporary = cached.with_name(f".{cached.stem}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as opened:
                np.save(opened, np.concatenate([_stamp(file, offsets), offsets]), allow_pickle=False)
            temporary.replace(cached)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as e:
        logger.info("cannot keep the index of %s: %s", file.path, e)


def _path(file: DataFile, format: str) -> Path | None:
    """None where nothing can be kept: a storage that does not tell versions of a file apart, a user without a home."""
    if not file.version:
        return None
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return None
    name = hashlib.sha256(f"{format}\0{file.path}".encode()).hexdigest()[:32]
    return cache / "raylingvo" / "index" / f"{name}.npy"


def _stamp(file: DataFile, offsets: np.ndarray) -> np.ndarray:
    """i64[3]: of the layout, of the file's size and version, of the offsets."""
    version = hashlib.sha256(f"{file.size}\0{file.version}".encode()).digest()
    return np.array([_LAYOUT, int.from_bytes(version[:8], "little", signed=True), zlib.crc32(offsets.tobytes())])
