"""Files that are either whole or absent, and disk errors that say which file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes every OSError that leaves the block name `path`; a failed write (disk full, say) does not by itself."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes `content`, text as UTF-8, so that a reader, or a crash at any moment, sees the old file or the new one.

    Raises OSError, naming the file, when the disk refuses.
    """
    # The process id keeps two writers of one file from sharing a temporary one; the dot hides it from globs.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(temporary):
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
