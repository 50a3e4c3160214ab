"""Snapshots on local disk: where those wait that do not fit the store's memory budget."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class SpillFolder:
    """A temporary folder of snapshots, each a folder of .npy files; removed with this object."""

    def __init__(self) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="raylingvo-snapshots-"))
        weakref.finalize(self, shutil.rmtree, self._root)

    def write(self, step: int, arrays: Sequence[np.ndarray]) -> Path:
        """Writes the arrays of a snapshot; returns their place."""
        folder = self._root / str(step)
        folder.mkdir()
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
