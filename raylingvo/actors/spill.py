"""Snapshots on local disk: where those wait that do not fit the store's memory budget."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class SpillFolder:
    """A temporary folder of snapshots, each a folder of .npy files. It exists from the first `write` to `close`."""

    def __init__(self) -> None:
        self._root: Path | None = None

    def write(self, step: int, arrays: Sequence[np.ndarray]) -> Path:
        """Writes the arrays of a snapshot; returns their place. Raises OSError if the disk refuses."""
        if self._root is None:
            self._root = Path(tempfile.mkdtemp(prefix="raylingvo-snapshots-"))
        folder = Path(tempfile.mkdtemp(prefix=f"{step}-", dir=self._root))
        for i, array in enumerate(arrays):
            np.save(folder / f"{i}.npy", array, allow_pickle=False)
        return folder

    def read(self, folder: Path) -> list[np.ndarray]:
        """The arrays of `write`, which are no longer on disk."""
        arrays = [np.load(folder / f"{i}.npy", allow_pickle=False) for i in range(len(list(folder.iterdir())))]
        self.delete(folder)
        return arrays

    def delete(self, folder: Path) -> None:
        """Removes a snapshot that nobody will read."""
        shutil.rmtree(folder)

    def close(self) -> None:
        """Removes all."""
        if self._root is not None:
            shutil.rmtree(self._root)
            self._root = None
