"""What the files of a folder were when it was finished: their sizes and CRC-32, by which later damage is found.

Orbax 0.12.8 finds damage to its own records only: in the data of large arrays it takes flipped bits, and some zeroed
blocks, for what was saved.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from pathlib import Path

FILE = "checksums.json"
_CHUNK = 1 << 20


def seal(folder: Path) -> None:
    """Writes FILE into a folder, for all files in and below it; all of them are on disk when this returns.

    Raises OSError when the disk refuses.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = (path.stat().st_size, _crc(path, sync=True))
    with (folder / FILE).open("w") as file:
        json.dump({"files": files}, file)
        file.flush()
        os.fsync(file.fileno())
    for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync_folder(path)


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, of which file; None if it is as it was.

    Raises OSError if that cannot be told, for want of a permission, say.
    """
    name = FILE
    try:
        files = json.loads((folder / FILE).read_text())["files"]
        sealed = {str(name): (int(size), int(crc)) for name, (size, crc) in files.items()}
        for name, (size, crc) in sealed.items():
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes of {size}"
            if _crc(folder / name) != crc:
                return f"{name} is not as it was written"
    except (FileNotFoundError, NotADirectoryError):
        return f"{name} is missing"
    except OSError as error:
        if error.errno != errno.EIO:  # by which a disk says that it has lost it
            raise
        return f"{name} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):  # what FILE makes when it is empty, cut or overwritten
        return f"{name} is not as it was written"
    return None


def sync_folder(folder: Path) -> None:
    """What has been renamed into, or made in, a folder is there after a power failure too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # some file systems know no such thing
            raise
    finally:
        os.close(descriptor)


def _crc(path: Path, *, sync: bool = False) -> int:
    crc = 0
    with path.open("rb", buffering=0) as file:
        # zlib's, which lets other threads run meanwhile: the training loop is one of them.
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
        if sync:
            os.fsync(file.fileno())
    return crc
