"""Snapshots that the Trainer has announced: host copies until the store has them, then views of the store's copies.

The store's process owns its copies, so they outlive the Trainer. The views outlive the store: mapped memory stays where
it is when its owner dies. So what one of the two loses, the other has.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from raylingvo.config import FrozenDict

if TYPE_CHECKING:
    from raylingvo.training.host_copy import Lease
    from raylingvo.training.pieces import Place


Version = tuple[int, int]


class Snapshot(NamedTuple):
    """One step in host memory: the weights and, when it is due, the rest of what a Trainer resumes from.

    Arrays are `encode`d leaves (training/host_copy.py) of TrainState.weights, and of the state's other fields; or, if
    several hosts hold them, this host's pieces of these leaves.
    """

    weights: list[np.ndarray]
    rest: list[np.ndarray] | None
    position: dict[str, Any] | None  # with `rest`: the input's position, the last report and counts, a JSON value
    places: tuple[list[Place], list[Place] | None] | None = None  # of the pieces of `weights` and `rest`
    settings: Mapping[str, Any] = FrozenDict()  # with which the run trains by then: see `variant.settings_of`


class Announcement(NamedTuple):
    """What the store is told of a snapshot before it pulls it."""

    step: int
    time: float  # Unix seconds at the end of the step
    nbytes: int  # of the weights
    rest_nbytes: int | None  # None if the snapshot has weights only


class _Item(NamedTuple):
    announcement: Announcement
    snapshot: Snapshot
    lease: Lease | None  # of the host copy; None once it is the store's


class Outbox:
    """Holds each announced snapshot until the store needs it no more. Thread-safe.

    Of the store's calls some may overtake others; they are ordered by `version`: the number of the store's life, and a
    count.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._items: dict[int, _Item] = {}
        self._version: Version = (0, 0)
        self._kept: Collection[int] = ()  # by the newest version
        self._states: Collection[int] = ()

    def put(self, announcement: Announcement, snapshot: Snapshot, lease: Lease) -> None:
        """`snapshot` can be read until it has been handed over, which releases `lease`."""
        with self._changed:
            self._items[announcement.step] = _Item(announcement, snapshot, lease)

    def get(self, step: int) -> Snapshot:
        """The snapshot of `step`. Raises KeyError if there is none."""
        with self._changed:
            return self._items[step].snapshot

    def announcements(self) -> list[Announcement]:
        """All that there are, the oldest first."""
        with self._changed:
            return [item.announcement for _, item in sorted(self._items.items())]

    def handed_over(self, version: Version, announcement: Announcement, copy: Snapshot) -> None:
        """The store has the snapshot: its copy takes the place of ours, unless it has dropped it since."""
        with self._changed:
            ours = self._items.pop(announcement.step, None)
            item = _Item(announcement, copy, None)
            if version > self._version:
                self._items[announcement.step] = item
            elif announcement.step in self._kept:
                self._items[announcement.step] = self._needed(item)
            self._changed.notify_all()
        if ours is not None and ours.lease is not None:
            ours.lease.release()

    def keep(self, version: Version, steps: Collection[int], states: Collection[int]) -> None:
        """Of what has been handed over the store needs only `steps`, and the rest of the state only of `states`."""
        with self._changed:
            if version < self._version:
                return
            self._version, self._kept, self._states = version, frozenset(steps), frozenset(states)
            handed_over = [step for step, item in self._items.items() if item.lease is None]
            for step in handed_over:
                item = self._items.pop(step)
                if step in self._kept:
                    self._items[step] = self._needed(item)

    def wait_handed_over(self, timeout: float) -> None:
        """Until the store has all snapshots. Raises TimeoutError after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: all(item.lease is None for item in self._items.values()), timeout):
                raise TimeoutError(f"the SnapshotStore has not fetched the last snapshots for {timeout:g} s")

    def _needed(self, item: _Item) -> _Item:
        if item.announcement.step in self._states:
            return item
        places = item.snapshot.places and (item.snapshot.places[0], None)
        only_weights = item.snapshot._replace(rest=None, position=None, places=places)
        return _Item(item.announcement._replace(rest_nbytes=None), only_weights, None)
