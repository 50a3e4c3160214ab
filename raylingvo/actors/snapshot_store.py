"""The SnapshotStore's bookkeeping: which snapshots exist, who still reads which, what may go. No Ray in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the store's process needs no JAX
    from raylingvo.experiment import Policy


@dataclasses.dataclass
class Entry:
    """The weights of one step. `payload` is whatever leads to them in memory, `place` to those on disk: one, or both.

    `state` leads to the rest of the train state, if it was taken. `held` and `held_state` keep the two on the store's
    machine. Readers may have an entry before it is `whole`: they wait for the object itself. Nobody resumes from it
    before.
    """

    step: int
    payload: Any
    nbytes: int
    time: float  # Unix seconds at the end of the step
    state: Any = None
    state_nbytes: int = 0
    whole: bool = False
    held: Any = None
    held_state: Any = None
    place: Any = None
    pinned_by: set[str] = dataclasses.field(default_factory=set)

    @property
    def in_memory(self) -> bool:
        return self.payload is not None


@dataclasses.dataclass
class Reader:
    """An Evaler or Decoder as the store knows it."""

    policy: Policy
    done: set[int]  # steps it has finished, in this run or an earlier one of the same logdir, or is not to work on
    working_on: int | None = None

    @property
    def last_done(self) -> int:
        return max(self.done, default=-1)


class SnapshotStore:
    """Holds the newest weights, and those that a reader of policy `every` has yet to see, within a budget.

    The newest weights and the newest recovery state are always kept in memory. What a reader works on is pinned. What
    nobody will read any more is dropped at once; the rest, beyond `max_bytes` or `max_count`, is to go to disk
    (`overflow`), since neither may training wait nor a reader of `every` miss one.
    """

    def __init__(self, max_bytes: int, max_count: int, delete: Callable[[Any], None] = lambda payload: None):
        """delete: called with the place on disk of an entry that nobody will read any more."""
        self._delete = delete
        self.max_bytes = max_bytes
        self.max_count = max_count
        self._last_step: int | None = None
        self._published: set[int] = set()
        self._entries: dict[int, Entry] = {}
        self._readers: dict[str, Reader] = {}
        self._state: Entry | None = None

    def register(self, name: str, policy: Policy, done: Iterable[int] = ()) -> None:
        """Adds a reader, or more steps to those that it has finished."""
        self._readers.setdefault(name, Reader(policy, set())).done.update(done)

    def died(self, name: str) -> int | None:
        """Reader `name` died, and will come back: its pin is undone. The step that it was working on."""
        reader = self._readers[name]
        step = reader.working_on
        self._unpin(name, reader)
        return step

    def set_aside(self, name: str, step: int) -> None:
        """Reader `name` is not to work on `step`."""
        self._readers[name].done.add(step)
        self._drop_unneeded()

    def unregister(self, name: str) -> None:
        """Reader `name`, if there is one, will not come back: nothing is kept for it."""
        if (reader := self._readers.pop(name, None)) is not None:
            self._unpin(name, reader)
            self._drop_unneeded()

    def add(
        self, step: int, payload: Any, nbytes: int, time: float, *, state: Any = None, state_nbytes: int = 0
    ) -> None:
        """A new snapshot, on its way; a second one of a step replaces the first."""
        self._published.add(step)
        entry = Entry(step, payload, nbytes, time, state, state_nbytes)
        if (previous := self._entries.get(step)) is not None:
            entry.pinned_by = previous.pinned_by
            self._delete_place(previous)
        self._entries[step] = entry
        self._drop_unneeded()

    def add_from_disk(self, step: int, place: Any, nbytes: int, time: float) -> None:
        """A snapshot that an earlier store has left on disk."""
        self._published.add(step)
        self._entries[step] = Entry(step, None, nbytes, time, whole=True, place=place)

    def arrived(self, step: int, held: Any = None, held_state: Any = None) -> None:
        """The snapshot of `step` is whole: from now on it does not need the Trainer any more.

        held, held_state: what is to be kept as long as the weights, or the rest of the state, are in memory.
        """
        if (entry := self._entries.get(step)) is not None:
            entry.whole, entry.held, entry.held_state = True, held, held_state
            if entry.state is not None and (self._state is None or step >= self._state.step):
                self._state = dataclasses.replace(entry)
            entry.state, entry.held_state, entry.state_nbytes = None, None, 0  # only the newest is kept
            self._drop_unneeded()

    def without_state(self, step: int) -> None:
        """The snapshot of `step`, on its way, turns out to have weights only."""
        if (entry := self._entries.get(step)) is not None:
            entry.state, entry.state_nbytes = None, 0

    def lost(self, step: int, payload: Any = None) -> None:
        """What leads to the weights of `step` leads nowhere: their owner died before they were complete.

        payload: what was tried, if it may not be the newest of that step.
        """
        if self._state is not None and self._state.step == step and payload in (None, self._state.payload):
            self._state = None
        entry = self._entries.get(step)
        if entry is None or payload not in (None, entry.payload):
            return
        del self._entries[step]
        self._published.discard(step)
        self._delete_place(entry)
        for reader in self._readers.values():
            if reader.working_on == step:
                reader.working_on = None

    def take(self, name: str) -> Entry | None:
        """The snapshot that reader `name` should work on now, pinned for it; None if there is nothing for now."""
        reader = self._readers[name]
        self._unpin(name, reader)
        entry = self._next(reader)
        if entry is None:
            return None
        reader.working_on = entry.step
        entry.pinned_by.add(name)
        self._drop_unneeded()
        return entry

    def done(self, name: str, step: int) -> None:
        """Reader `name` has finished `step` and recorded its result."""
        reader = self._readers[name]
        reader.done.add(step)
        self._unpin(name, reader)
        self._drop_unneeded()

    def close(self, last_step: int) -> None:
        """No snapshot will follow that of `last_step`, which may still be announced.

        Readers of policy `last` get that one, and all end when they have seen theirs.
        """
        self._last_step = last_step

    @property
    def closed(self) -> bool:
        """Whether all snapshots are here."""
        return self._last_step in self._published

    def has_work(self, name: str) -> bool:
        """Whether `take` would give reader `name` a snapshot."""
        return self._next(self._readers[name]) is not None

    def finished(self, name: str) -> bool:
        """Whether reader `name` has nothing more to expect."""
        return self.closed and not self.has_work(name)

    def newest_state(self) -> tuple[int, Any] | None:
        """(step, (weights, rest)) payloads of the newest whole train state, or None if there is none."""
        return (self._state.step, (self._state.payload, self._state.state)) if self._state else None

    def overflow(self) -> list[Entry]:
        """What must move to disk to respect the budget, oldest first: waited for, but neither pinned nor newest."""
        kept = [entry for _, entry in sorted(self._entries.items()) if entry.in_memory]
        stays = {kept[-1].step, self._newest_whole()} if kept else set()
        nbytes = self.nbytes
        moved = []
        for entry in kept:
            if nbytes <= self.max_bytes and len(kept) - len(moved) <= self.max_count:
                break
            if entry.whole and entry.step not in stays and not entry.pinned_by and not self._holds_state(entry):
                moved.append(entry)
                nbytes -= entry.nbytes
        return moved

    def moved_out(self, entry: Entry, place: Any) -> None:
        """The weights of an entry are at `place` on disk, and no longer in memory."""
        if self._entries.get(entry.step) is entry:
            entry.payload, entry.held, entry.place = None, None, place
        else:  # it was dropped, or replaced, meanwhile
            self._delete(place)

    def whole(self) -> list[Entry]:
        """What is complete and has its weights in memory alone; the newest state with the rest of it."""
        entries = {step: entry for step, entry in self._entries.items() if entry.whole and entry.place is None}
        if self._state is not None:
            entries[self._state.step] = self._state
        return [entry for _, entry in sorted(entries.items())]

    def needed(self) -> tuple[list[int], list[int]]:
        """What memory alone has: (the steps whose weights are not on disk, those whose whole train state is wanted)."""
        # The newest whole one, and those on their way.
        states = {step for step, entry in self._entries.items() if entry.state is not None}
        states |= {self._state.step} if self._state is not None else set()
        return sorted(states | {step for step, entry in self._entries.items() if entry.place is None}), sorted(states)

    def get(self, step: int) -> Entry | None:
        """The entry of `step`, if there is one."""
        return self._entries.get(step)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        weights = {entry.step: entry.nbytes for entry in self._entries.values() if entry.in_memory}
        states = {entry.step: entry.state_nbytes for entry in self._entries.values()}
        if self._state is not None:
            weights[self._state.step] = self._state.nbytes
            states[self._state.step] = self._state.state_nbytes
        return sum(weights.values()) + sum(states.values())

    def status(self) -> dict[str, Any]:
        """For the live table: of the store, and of each reader what it works on, and since when that waits.

        working_since: Unix seconds at the end of that step; None, as `working_on`, of a reader without work.
        """
        newest = max(self._entries.values(), key=lambda entry: entry.step, default=None)
        return {
            "held": sum(entry.in_memory and entry.whole for entry in self._entries.values()),
            "on_disk": sum(not entry.in_memory for entry in self._entries.values()),
            "bytes": self.nbytes,
            "state_step": self._state and self._state.step,
            "newest": (newest.step, newest.time) if newest else None,
            "readers": {
                name: {
                    "working_on": reader.working_on,
                    "working_since": self._working_since(reader),
                    "skipped": self._skipped(reader),
                    "behind": self._behind(reader),
                    "waiting": sum(self._waits_for(reader, entry) for entry in self._entries.values()),
                }
                for name, reader in self._readers.items()
            },
        }

    def _next(self, reader: Reader) -> Entry | None:
        if reader.policy == "every":
            waiting = [entry for entry in self._entries.values() if self._waits_for(reader, entry)]
            return min(waiting, key=lambda entry: entry.step, default=None)
        newest = max(self._entries.values(), key=lambda entry: entry.step, default=None)
        if newest is None or newest.step <= reader.last_done or (reader.policy == "last" and not self.closed):
            return None
        return newest

    def _working_since(self, reader: Reader) -> float | None:
        entry = None if reader.working_on is None else self._entries.get(reader.working_on)
        return entry and entry.time

    def _waits_for(self, reader: Reader, entry: Entry) -> bool:
        return reader.policy == "every" and entry.step not in reader.done

    def _skipped(self, reader: Reader) -> int:
        """How many were published before the last that it has finished, and are not its."""
        if reader.policy != "latest":
            return 0
        return sum(step < reader.last_done and step not in reader.done for step in self._published)

    def _behind(self, reader: Reader) -> int | None:
        """How many steps the newest snapshot is ahead of what it has done; None of one that waits for the last."""
        if reader.policy == "last" and not self.closed:
            return None
        return max(0, max(self._published, default=0) - max(0, reader.last_done))

    def _unpin(self, name: str, reader: Reader) -> None:
        if reader.working_on in self._entries:
            self._entries[reader.working_on].pinned_by.discard(name)
        reader.working_on = None

    def _drop_unneeded(self) -> None:
        stays = {max(self._entries, default=None), self._newest_whole()}
        for step, entry in list(self._entries.items()):
            waited_for = any(self._waits_for(reader, entry) for reader in self._readers.values())
            if step not in stays and entry.whole and not entry.pinned_by and not waited_for:
                del self._entries[step]
                self._delete_place(entry)

    def _delete_place(self, entry: Entry) -> None:
        if entry.place is not None:
            self._delete(entry.place)

    def _newest_whole(self) -> int | None:
        return max((step for step, entry in self._entries.items() if entry.whole), default=None)

    def _holds_state(self, entry: Entry) -> bool:
        return self._state is not None and self._state.step == entry.step
