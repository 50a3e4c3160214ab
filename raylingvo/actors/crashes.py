"""What a process says that dies of a fatal signal, such as a segmentation fault in an op: where it was."""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import Iterator
from pathlib import Path

from raylingvo.monitor.atomic import naming


def trainer(index: int) -> str:
    """The role of host number `index` of the Trainer."""
    return f"trainer-{index}" if index else "trainer"


@contextlib.contextmanager
def recorded(logdir: Path, role: str) -> Iterator[None]:
    """If this process is to die so meanwhile, the stacks of its threads go to `LOGDIR/control/<role>_crash.txt`."""
    path = _path(logdir, role)
    with naming(path):
        file = path.open("w")
    with file:
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.enable()  # as Ray has it: to stderr
            with contextlib.suppress(OSError):  # of a disk that has made it fail
                forget(logdir, role)


def read(logdir: Path, role: str) -> str:
    """`Fatal Python error: Segmentation fault (file)` if the last process of the role has died so; else empty."""
    path = _path(logdir, role)
    if not path.exists():
        return ""
    first_line = path.read_text(errors="replace").partition("\n")[0]
    return first_line and f"{first_line} ({path})"


def forget(logdir: Path, role: str) -> None:
    """What an earlier process of the role has said is not said of the next one."""
    _path(logdir, role).unlink(missing_ok=True)


def _path(logdir: Path, role: str) -> Path:
    return logdir / "control" / f"{role}_crash.txt"
