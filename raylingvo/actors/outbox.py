"""Snapshots on their way out of the Trainer: host copies that wait for the store and the checkpoint writer."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from raylingvo.training.host_copy import HostCopier


class Snapshot(NamedTuple):
    """One step in host memory: the weights and, when it is due, the rest of what a Trainer resumes from.

    Arrays are `encode`d leaves (training/host_copy.py): of TrainState.weights, and of the state's other fields.
    """

    weights: list[np.ndarray]
    rest: list[np.ndarray] | None
    position: dict[str, Any] | None  # with `rest`: the input's position and the last report, a JSON value


@dataclasses.dataclass
class _Sent:
    snapshot: Snapshot
    buffers: Sequence[np.ndarray]
    users: int


class Outbox:
    """Holds each snapshot until all who read it have released it; then its buffers are used again. Thread-safe."""

    def __init__(self, copier: HostCopier):
        self._copier = copier
        self._lock = threading.Lock()
        self._sent: dict[int, _Sent] = {}

    def put(self, step: int, snapshot: Snapshot, buffers: Sequence[np.ndarray], *, users: int) -> None:
        """`snapshot`, whose arrays lie in `buffers`, is there until `release(step)` has been called `users` times."""
        with self._lock:
            self._sent[step] = _Sent(snapshot, buffers, users)

    def get(self, step: int) -> Snapshot:
        """The snapshot of `step`. Raises KeyError if it has been released."""
        with self._lock:
            return self._sent[step].snapshot

    def release(self, step: int) -> None:
        """One reader of `step` has what it needs."""
        with self._lock:
            sent = self._sent[step]
            sent.users -= 1
            if sent.users == 0:
                del self._sent[step]
                self._copier.release(sent.buffers)
