"""What a process says that dies of a fatal signal, such as a segmentation fault in an op: where it was."""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import Iterator
from pathlib import Path

TRAINER = "trainer"


@contextlib.contextmanager
def recorded(logdir: Path, role: str) -> Iterator[None]:
    """If this process is to die so meanwhile, the stacks of its threads go to `LOGDIR/control/<role>_crash.txt`."""
    path = _path(logdir, role)
    with path.open("w") as file:
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.enable()  # as Ray has it: to stderr
            path.unlink()


def read(logdir: Path, role: str) -> str:
    """`Fatal Python error: Segmentation fault (file)` if the last process of the role has died so; else empty."""
    path = _path(logdir, role)
    if not path.exists():
        return ""
    first_line = path.read_text(errors="replace").partition("\n")[0]
    return first_line and f"{first_line} ({path})"


def _path(logdir: Path, role: str) -> Path:
    return logdir / "control" / f"{role}_crash.txt"
