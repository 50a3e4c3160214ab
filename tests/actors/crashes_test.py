"""What is left of a process that a fatal signal has killed."""

import faulthandler
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raylingvo.actors import crashes

CRASH = """
import faulthandler, pathlib, sys
from raylingvo.actors import crashes
with crashes.recorded(pathlib.Path(sys.argv[1]), "trainer"):
    faulthandler._sigsegv()
"""


@pytest.fixture
def logdir(tmp_path: Path) -> Path:
    (tmp_path / "control").mkdir()
    return tmp_path


def test_a_crash_is_told_until_it_is_forgotten(logdir: Path) -> None:
    assert crashes.read(logdir, "trainer") == ""
    ended = subprocess.run([sys.executable, "-c", CRASH, logdir], capture_output=True)
    assert ended.returncode == -signal.SIGSEGV
    file = logdir / "control" / "trainer_crash.txt"
    assert crashes.read(logdir, "trainer") == f"Fatal Python error: Segmentation fault ({file})"
    assert "_sigsegv" in file.read_text() or "<module>" in file.read_text()
    crashes.forget(logdir, "trainer")
    crashes.forget(logdir, "trainer")
    assert crashes.read(logdir, "trainer") == ""


def test_nothing_is_left_of_a_process_that_ends_otherwise(logdir: Path) -> None:
    enabled = faulthandler.is_enabled()
    try:
        with pytest.raises(ValueError, match="its own"), crashes.recorded(logdir, "trainer"):
            (logdir / "control" / "trainer_crash.txt").unlink()  # the error is told all the same
            raise ValueError("its own")
        with crashes.recorded(logdir, "trainer"):
            assert crashes.read(logdir, "trainer") == ""
    finally:
        (faulthandler.enable if enabled else faulthandler.disable)()
    assert not list((logdir / "control").iterdir())
