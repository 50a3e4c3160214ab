"""A real file system that is small enough to be filled, for tests of what a full or read-only disk does."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """A tmpfs at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, free: int = 0) -> None:
        """Takes all space but `free` bytes, in whole pages."""
        with (self.path / "ballast").open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 12))
            file.truncate(max(0, file.tell() - free))

    def make_space(self) -> None:
        (self.path / "ballast").unlink()

    def make_read_only(self) -> None:
        self._remount("ro")

    def make_writable(self) -> None:
        self._remount("rw")

    def _remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", self.path], check=True)


@contextlib.contextmanager
def small_disk(path: Path, kilobytes: int) -> Iterator[SmallDisk]:
    """Mounts one, and skips the test where that is not permitted."""
    path.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k"]
    try:
        mounted = subprocess.run(["mount", *options, "raylingvo-test", path], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("a full disk needs `mount`, which is not here")
    if mounted.returncode:
        pytest.skip(f"a full disk needs the right to mount one: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        # Lazily: what a failed test has left open must not keep it.
        subprocess.run(["umount", "--lazy", path], check=True)
