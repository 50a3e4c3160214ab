"""The SnapshotStore as an actor: owns what it pulls from the Trainer, and wakes those who wait.

It may die at any moment. Ray starts it again and repeats the calls that it had not answered, so every call may come
twice; `open` tells the new one what the run knows, and what the Trainer still holds it pulls again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from raylingvo.actors import metrics
from raylingvo.actors.calls import PAYLOAD_SECONDS, POLL_SECONDS, fetch
from raylingvo.actors.snapshot_store import Entry, SnapshotStore
from raylingvo.actors.spill import SpillFolder
from raylingvo.monitor.exported import store_samples

if TYPE_CHECKING:  # this process needs no JAX
    from raylingvo.actors.outbox import Announcement
    from raylingvo.experiment import Policy

    Readers = Sequence[tuple[str, Policy, Sequence[int]]]


_RETRY_SECONDS = 0.5  # between two tries to reach a Trainer that does not answer
_REFILL_SECONDS = 10.0  # how long readers wait for a Trainer that may never come


@dataclasses.dataclass(frozen=True)
class HostActor:
    """One of the actors that are the Trainer."""

    trainer: str  # what no other life of the Trainer has
    index: int
    count: int
    actor: Any


Named = tuple[str, Sequence[Any]]  # the name of a Trainer that no other life has, and an actor for each host


class _Announced(NamedTuple):
    by_host: dict[int, tuple[Any, Announcement]]
    by_all: asyncio.Event


class StoreActor:
    """Large objects only ever travel as references inside a list, which Ray does not fetch for the callee."""

    def __init__(self, run: str, spill_token: str, max_bytes: int, max_count: int, environment: Mapping[str, str]):
        os.environ.update(environment)
        self._run = run
        self._life = uuid.uuid4().hex
        self._export_is_due = metrics.Sometimes()
        self._number = 0  # of this life, by the driver's count
        self._calls = 0  # of this life to the Trainer
        self._spill = SpillFolder(spill_token)
        self._store = SnapshotStore(max_bytes, max_count, delete=self._spill.delete)
        self._opening = asyncio.Lock()
        self._opened = asyncio.Event()
        self._refilled = 0
        self._spilling = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._results: list[dict[str, Any]] = []
        self._failure: Exception | None = None
        self._dismissed = False
        self._tasks: set[asyncio.Task[bool]] = set()
        self._trainer: Sequence[Any] = ()  # an actor for each of its hosts
        self._trainer_name: str | None = None
        self._announced: dict[tuple[str, int], _Announced] = {}  # not yet by all hosts
        self._kept: tuple[list[int], list[int]] = [], []  # as the Trainer knows it

    def __repr__(self) -> str:
        return f"SnapshotStore({self._run})"

    async def open(
        self, readers: Readers, trainer: Named | None = None, last_step: int | None = None, number: int = 0
    ) -> tuple[str, int]:
        """Tells who reads, with which policy, and which steps they have done.

        trainer: what a store that was started again refills itself from. last_step: as for
        `close`. number: how many lives there have been before. A second call in the same life tells of more steps that
        are done, and a later number, at most.
        Returns (this life, the number of snapshots that have come from the Trainer).
        """
        self._number = max(self._number, number)
        for name, policy, done in readers:
            self._store.register(name, policy, done)
        async with self._opening:
            if not self._opened.is_set():
                self._refilled = await self._refill(trainer)
                self._opened.set()
        if last_step is not None and self._refilled:
            self._store.close(last_step)
        await self._wake()
        return self._life, self._refilled

    async def _refill(self, named: Named | None) -> int:
        for step, end_of_step, nbytes, place in self._spill.found():
            self._store.add_from_disk(step, place, nbytes, end_of_step)
        if named is None:
            return 0
        self._trainer_name, trainer = named
        self._trainer = trainer
        try:
            async with asyncio.timeout(_REFILL_SECONDS):
                told = await asyncio.gather(*(host.announcements.remote() for host in trainer))
        except (RayError, TimeoutError):  # it is dead, or there is no machine for it yet
            return 0
        by_host = [{announcement[0]: announcement for announcement in announcements} for announcements in told]
        common = sorted(set.intersection(*(set(announcements) for announcements in by_host)))
        pulls = [self._pull(trainer, [announcements[step] for announcements in by_host]) for step in common]
        return sum(await asyncio.gather(*pulls))

    async def unregister(self, name: str) -> None:
        await self._opened.wait()
        self._store.unregister(name)
        await self._wake()

    async def died(self, name: str) -> int | None:
        """The reader `name` died, and will be started again. The step that it was working on."""
        await self._opened.wait()
        step = self._store.died(name)
        await self._wake()
        return step

    async def set_aside(self, name: str, step: int) -> None:
        """Reader `name` is not to work on `step`."""
        await self._opened.wait()
        self._store.set_aside(name, step)
        await self._wake()

    async def welcome(self, named: Named) -> None:
        """A new Trainer, in the place of one that died: gets what only that one had, should this process die too."""
        await self._opened.wait()
        self._trainer_name, trainer = named
        self._trainer = trainer
        for key in [key for key in self._announced if key[0] != self._trainer_name]:
            self._announced.pop(key).by_all.set()  # by those that there are: the Trainer that they were of is gone
        for entry in self._store.whole():
            rests = entry.state or [None] * len(trainer)
            for host, (actor, weights, rest) in enumerate(zip(trainer, entry.payload, rests, strict=True)):
                # The sizes are those of all hosts; they need not be counted more than once.
                sizes = (entry.nbytes, entry.state_nbytes) if host == 0 else (0, 0)
                announcement = (entry.step, entry.time, sizes[0], sizes[1] if entry.state else None)
                actor.handed_over.remote(self._version(), announcement, [weights, rest])

    async def announce(self, host: HostActor, announcement: Announcement) -> None:
        """One of the Trainer's hosts has a snapshot: pulls it, when all of them have.

        Readers are woken at once and wait for the object itself. The answer comes when all hosts have announced it: if
        this process dies before, its next life is told again.
        """
        await self._opened.wait()
        if self._trainer_name is None:
            self._trainer_name = host.trainer
        if host.trainer != self._trainer_name:
            return  # it died
        step = announcement[0]
        announced = self._announced.setdefault((host.trainer, step), _Announced({}, asyncio.Event()))
        announced.by_host[host.index] = host.actor, announcement
        if len(announced.by_host) < host.count:
            await announced.by_all.wait()
            return
        del self._announced[host.trainer, step]
        announced.by_all.set()
        actors, announcements = zip(*(announced.by_host[i] for i in range(host.count)), strict=True)
        entry = self._store.get(step)
        if entry is None or entry.time != announcements[0][1]:  # else `open` has pulled it already
            self._trainer = actors
            self._pull(actors, announcements)
            await self._wake()

    def _pull(self, trainer: Sequence[Any], announcements: Sequence[Announcement]) -> asyncio.Task[bool]:
        """The task tells whether the snapshot has come."""
        step, end_of_step, *_ = announcements[0]
        # Of those that were told to keep only the weights some may not have heard it yet.
        with_rest = all(announcement[3] is not None for announcement in announcements)
        pulled = [actor.snapshot.options(num_returns=3).remote(step) for actor in trainer]
        payload, rests, wholes = (list(refs) for refs in zip(*pulled, strict=True))
        self._store.add(
            step,
            payload,
            sum(announcement[2] for announcement in announcements),
            end_of_step,
            state=rests if with_rest else None,
            state_nbytes=sum(announcement[3] or 0 for announcement in announcements),
        )
        task = asyncio.create_task(self._settle(trainer, announcements, payload, rests, wholes))
        self._tasks.add(task)  # asyncio itself keeps only weak references
        task.add_done_callback(self._tasks.discard)
        return task

    async def _settle(
        self,
        trainer: Sequence[Any],
        announcements: Sequence[Announcement],
        payload: list[Any],
        rests: list[Any],
        wholes: list[Any],
    ) -> bool:
        step = announcements[0][0]
        try:
            there = all(await asyncio.gather(*wholes))
            # Fetched to this machine: the Trainer's may be lost, with what was only there.
            held = [await asyncio.gather(*refs) for refs in (payload, rests)] if there else []
            if held and any(announcement[3] is not None for announcement in announcements) and None in held[1]:
                self._store.without_state(step)  # a host has dropped it since it was announced
        except ActorUnavailableError:  # for the moment: it may turn out to be dead
            await asyncio.sleep(_RETRY_SECONDS)
            return await self._pull(trainer, announcements) if self._is_of(step, payload) else False
        except RayTaskError as error:  # there is no room for it in the object store, say
            self._failure, there, held = error, False, []
        except RayError:  # the Trainer died, however, before it had handed the snapshot over
            there, held = False, []
        if there:
            for actor, announcement, weights, rest in zip(trainer, announcements, payload, rests, strict=True):
                actor.handed_over.remote(self._version(), announcement, [weights, rest])
        if self._is_of(step, payload):  # else another Trainer has announced the step since
            if there:
                self._store.arrived(step, *held)
                await self._move_out()
            else:
                self._store.lost(step)
        await self._wake()
        return there

    def _is_of(self, step: int, payload: list[Any]) -> bool:
        """Whether this is what the store has of the step, and not what came of a later announcement."""
        entry = self._store.get(step)
        return entry is not None and entry.payload is payload

    async def _move_out(self) -> None:
        try:
            while True:
                async with self._spilling:  # one at a time, or two would move the same
                    entry = next(iter(self._store.overflow()), None)
                    if entry is None:
                        return
                    if (place := entry.place) is None:
                        place = await asyncio.to_thread(self._spill_payload, entry)
                    self._store.moved_out(entry, place)
        except Exception as error:  # a full disk or object store: nobody awaits this task, so `results` raises it
            self._failure = error

    def _spill_payload(self, entry: Entry) -> Path:
        return self._spill.write(entry.step, entry.time, fetch(entry.payload, PAYLOAD_SECONDS))

    async def lost(self, life: str, step: int, weights: list[Any]) -> None:
        """What this life of the store gave of `step` cannot be read. (Of an earlier one nothing can.)"""
        if life == self._life:
            self._store.lost(step, weights)
            await self._wake()

    async def take(self, name: str) -> dict[str, Any]:
        """Long poll of a reader: {"life", "step", "time", "weights": [a ref for each host]}, or {"end": bool}."""
        await self._opened.wait()
        entry = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS), self._changed:
                await self._changed.wait_for(
                    lambda: self._dismissed or self._store.has_work(name) or self._store.finished(name)
                )
                entry = None if self._dismissed else self._store.take(name)
        if entry is None:
            return {"end": self._dismissed or self._store.finished(name)}
        if not entry.in_memory:
            async with self._spilling:
                if not entry.in_memory:  # another reader may have had it brought back meanwhile
                    parts = await asyncio.to_thread(self._spill.read, entry.place)
                    entry.payload = [ray.put(part) for part in parts]
        return {"life": self._life, "step": entry.step, "time": entry.time, "weights": entry.payload}

    async def done(self, name: str, step: int, result: dict[str, float]) -> None:
        await self._opened.wait()
        self._store.done(name, step)
        self._results.append({"reader": name, "step": step, "metrics": result})
        await self._wake()

    async def results(self, life: str | None, seen: int) -> tuple[str, list[dict[str, Any]]]:
        """Long poll of the driver: (this life, its results after the first `seen`), at once if `life` is another one.

        Raises what went wrong in the background.
        """
        if life != self._life:
            return self._life, self._results
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS), self._changed:
                await self._changed.wait_for(lambda: len(self._results) > seen or self._failure)
        if self._failure is not None:
            raise self._failure
        return self._life, self._results[seen:]

    async def newest_state(self) -> dict[str, Any] | None:
        await self._opened.wait()
        newest = self._store.newest_state()
        return newest and {"life": self._life, "step": newest[0], "weights": newest[1][0], "rest": newest[1][1]}

    async def close(self, last_step: int) -> None:
        """No snapshot will follow that of `last_step`."""
        await self._opened.wait()
        self._store.close(last_step)
        await self._wake()

    async def dismiss(self) -> None:
        """The run is interrupted: readers get nothing more, and end."""
        self._dismissed = True
        await self._wake()

    async def status(self) -> dict[str, Any]:
        status = self._store.status()
        if self._export_is_due():  # asked by the driver every second, as long as the run lasts
            metrics.export(self._run, store_samples(status, time.time()))
        return status

    async def shutdown(self) -> None:
        """Removes what lies on disk; to be called before the actor is killed, which runs no clean-up."""
        async with self._spilling:
            self._spill.close()

    async def _wake(self) -> None:
        needed = self._store.needed()
        if needed != self._kept and self._trainer:
            self._kept = needed
            for actor in self._trainer:
                actor.keep.remote(self._version(), *needed)
        async with self._changed:
            self._changed.notify_all()

    def _version(self) -> tuple[int, int]:
        self._calls += 1
        return self._number, self._calls
