"""Snapshots on local disk: where those wait that do not fit the store's memory budget."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raylingvo.training.pieces import Place

_CONTENTS = "contents.json"  # for each host how many arrays it gave, their places, and the settings

# What one host gave of a snapshot: arrays; where in the leaves they lie, None if they are the leaves; and the settings
# with which the run trains by then, JSON values.
Part = tuple[Sequence[np.ndarray], Sequence[Place] | None, Mapping[str, Any]]


class SpillFolder:
    """A temporary folder of snapshots, each a folder of .npy files. It exists from the first `write` to `close`."""

    def __init__(self, token: str):
        """token: what no other run has, and nobody can guess; a store that is started again finds its folder by it."""
        self._root = Path(tempfile.gettempdir()) / f"raylingvo-snapshots-{token}"

    def write(self, step: int, time: float, parts: Sequence[Part]) -> Path:
        """Writes a snapshot, given by the parts of all hosts; returns its place. Raises OSError if the disk refuses.

        time: Unix seconds at the end of the step.
        """
        self._root.mkdir(mode=0o700, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{step}-", dir=self._root))
        for host, (arrays, _, _) in enumerate(parts):
            for i, array in enumerate(arrays):
                np.save(unfinished / f"{host}-{i}.npy", array, allow_pickle=False)
        contents = [(len(arrays), places, dict(settings)) for arrays, places, settings in parts]
        (unfinished / _CONTENTS).write_text(json.dumps(contents))
        return unfinished.rename(self._root / f"{step}@{time!r}")

    def found(self) -> list[tuple[int, float, int, Path]]:
        """(step, time, bytes, place) of the snapshots that an earlier store has left; half-written ones are removed."""
        snapshots = []
        for folder in sorted(self._root.iterdir()) if self._root.exists() else ():
            if folder.name.startswith("."):
                shutil.rmtree(folder)
                continue
            step, _, time = folder.name.partition("@")
            arrays = (np.load(file, mmap_mode="r", allow_pickle=False) for file in folder.glob("*.npy"))
            snapshots.append((int(step), float(time), sum(array.nbytes for array in arrays), folder))
        return snapshots

    def read(self, folder: Path) -> list[Part]:
        """The parts of `write`."""
        parts = []
        for host, (count, places, settings) in enumerate(json.loads((folder / _CONTENTS).read_text())):
            arrays = [np.load(folder / f"{host}-{i}.npy", allow_pickle=False) for i in range(count)]
            parts.append((arrays, places and [Place(leaf, tuple(start)) for leaf, start in places], settings))
        return parts

    def delete(self, folder: Path) -> None:
        """Removes a snapshot that nobody will read."""
        shutil.rmtree(folder)

    def close(self) -> None:
        """Removes all."""
        if self._root.exists():
            shutil.rmtree(self._root)
