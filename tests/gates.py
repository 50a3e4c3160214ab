"""Data that stop whoever reads them until a test lets go: instead of sleeping until something has probably happened."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
from toy import Numbers, Rows


class Gate:
    """A test's end: knows who stands before the gate, and lets them through one at a time, or all."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        for name in ("entered", "go"):
            os.mkfifo(folder / name)
        # Opened for both directions, so that neither end waits for the other to come.
        self._entered = os.fdopen(os.open(folder / "entered", os.O_RDWR))
        self._go = os.open(folder / "go", os.O_RDWR)

    def wait(self) -> int:
        """Waits for the next one to stand before the gate; its process id."""
        return int(self._entered.readline())

    def let_through(self) -> None:
        os.write(self._go, b".")

    def open(self) -> None:
        """For good."""
        (self.folder / "open").touch()
        self.let_through()

    def close(self) -> None:
        self._entered.close()
        os.close(self._go)


@dataclasses.dataclass(frozen=True, eq=False)
class GatedRows(Rows):
    """Rows whose `take` stops at the gate , counting the batches that were asked for."""

    gate: Path
    at_call: int
    calls: list[int]

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        self.calls.append(1)
        if (self.at_call == 0 or len(self.calls) == self.at_call) and not (self.gate / "open").exists():
            entered, go = (os.open(self.gate / name, os.O_RDWR) for name in ("entered", "go"))
            os.write(entered, f"{os.getpid()}\n".encode())
            os.read(go, 1)
            os.close(entered)
            os.close(go)
        return super().take(indices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedNumbers(Numbers):
    """Numbers behind the gate in `gate`: at the `at_call`-th batch that a process takes, or (0) at every batch."""

    gate: str
    at_call: int = 0

    def open(self) -> GatedRows:
        rows = super().open()
        return GatedRows(rows.x_Nx4, rows.y_N, Path(self.gate), self.at_call, [])
