"""Snapshots on their way out of the Trainer: host copies that wait for the store."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np

from raylingvo.training.host_copy import Lease


class Snapshot(NamedTuple):
    """One step in host memory: the weights and, when it is due, the rest of what a Trainer resumes from.

    Arrays are `encode`d leaves (training/host_copy.py): of TrainState.weights, and of the state's other fields.
    """

    weights: list[np.ndarray]
    rest: list[np.ndarray] | None
    position: dict[str, Any] | None  # with `rest`: the input's position, the last report and counts, a JSON value


class Outbox:
    """Holds each announced snapshot until the store has copied it; then its buffers are used again. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[Snapshot, Lease]] = {}

    def put(self, step: int, snapshot: Snapshot, lease: Lease) -> None:
        """`snapshot` can be read until `release(step)`, which releases `lease`."""
        with self._lock:
            self._waiting[step] = snapshot, lease

    def get(self, step: int) -> Snapshot:
        """The snapshot of `step`. Raises KeyError if there is none."""
        with self._lock:
            return self._waiting[step][0]

    def release(self, step: int) -> None:
        """The store has copied the snapshot of `step`. Raises KeyError if there is none."""
        with self._lock:
            lease = self._waiting.pop(step)[1]
        lease.release()
