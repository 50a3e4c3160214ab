"""Files that are either whole or absent, and disk errors that say which file."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from raylingvo.errors import DiskError

# What a disk says that takes no more: nothing is wrong with the program, and somebody has to see to it.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes every OSError that leaves the block name `path`; a failed write (disk full, say) does not by itself.

    An error of REFUSALS becomes a DiskError.
    """
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        if error.errno in REFUSALS:
            raise DiskError(error.errno, error.strerror, str(path)) from error
        if error.filename is None and error.errno is not None:  # without a number, a path would replace the message
            error.filename = str(path)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes `content`, text as UTF-8, so that a reader, or a crash at any moment, sees the old file or the new one.

    Raises OSError, naming the file, when the disk refuses; see `naming`.
    """
    # The process id keeps two writers of one file from sharing a temporary one; the dot hides it from globs.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
