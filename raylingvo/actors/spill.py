"""Snapshots on local disk: where those wait that do not fit the store's memory budget."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class SpillFolder:
    """A temporary folder of snapshots, each a folder of .npy files. It exists from the first `write` to `close`."""

    def __init__(self, token: str):
        """token: what no other run has, and nobody can guess; a store that is started again finds its folder by it."""
        self._root = Path(tempfile.gettempdir()) / f"raylingvo-snapshots-{token}"

    def write(self, step: int, time: float, arrays: Sequence[np.ndarray]) -> Path:
        """Writes the arrays of a snapshot; returns their place. Raises OSError if the disk refuses.

        time: Unix seconds at the end of the step.
        """
        self._root.mkdir(mode=0o700, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{step}-", dir=self._root))
        for i, array in enumerate(arrays):
            np.save(unfinished / f"{i}.npy", array, allow_pickle=False)
        return unfinished.rename(self._root / f"{step}@{time!r}")

    def found(self) -> list[tuple[int, float, int, Path]]:
        """(step, time, bytes, place) of the snapshots that an earlier store has left; half-written ones are removed."""
        snapshots = []
        for folder in sorted(self._root.iterdir()) if self._root.exists() else ():
            if folder.name.startswith("."):
                shutil.rmtree(folder)
                continue
            step, _, time = folder.name.partition("@")
            arrays = (np.load(file, mmap_mode="r", allow_pickle=False) for file in folder.iterdir())
            snapshots.append((int(step), float(time), sum(array.nbytes for array in arrays), folder))
        return snapshots

    def read(self, folder: Path) -> list[np.ndarray]:
        """The arrays of `write`."""
        return [np.load(folder / f"{i}.npy", allow_pickle=False) for i in range(len(list(folder.iterdir())))]

    def delete(self, folder: Path) -> None:
        """Removes a snapshot that nobody will read."""
        shutil.rmtree(folder)

    def close(self) -> None:
        """Removes all."""
        if self._root.exists():
            shutil.rmtree(self._root)
