"""Roles as Ray actors: the one place where a plain class becomes an actor, and where roles reach the store.

Who calls owns what comes back: the *store* calls the Trainer's `snapshot`, so that the object outlives the Trainer.
Large objects only ever travel as references inside a list, which Ray does not fetch for the callee.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from raylingvo import config
from raylingvo.actors.snapshot_store import SnapshotStore
from raylingvo.actors.spill import SpillFolder
from raylingvo.data.paths import data_root
from raylingvo.experiment import Experiment, Policy, RoleResources

if TYPE_CHECKING:
    from raylingvo.actors.outbox import Snapshot
    from raylingvo.actors.reader import Arrival

# A long poll returns empty-handed after this long, so that nobody waits for ever for an actor that is gone.
POLL_SECONDS = 20.0
REPLY_SECONDS = 60.0  # how long a role waits for another's answer before it gives up


def fetch(ref: Any, timeout: float = REPLY_SECONDS) -> Any:
    """What another role answered, waited for at most `timeout` seconds."""
    return ray.get(ref, timeout=timeout)


class Job:
    """What every role of a run is told when it starts: plain data, unpickled without the user's modules."""

    def __init__(self, run: str, experiment: Experiment, logdir: Path):
        self.run = run
        self.config = config.dump(experiment)
        self.logdir = str(logdir)
        self.import_paths = [path for path in sys.path if path]
        self.environment = {"RAYLINGVO_DATA": str(data_root())}

    def enter(self, resources: RoleResources, niceness: int) -> Experiment:
        """In the role's process, before JAX is imported: makes the process the role's, returns the experiment."""
        os.environ.update(self.environment, **_platform(resources))
        sys.path.extend(path for path in self.import_paths if path not in sys.path)
        os.nice(niceness)
        return config.load(self.config, Experiment)


def _platform(resources: RoleResources) -> dict[str, str]:
    if not resources.num_gpus and not resources.custom.get("TPU"):
        return {"JAX_PLATFORMS": "cpu"}  # Ray does not hide GPUs from actors that asked for none
    if 0 < resources.num_gpus < 1:
        return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # a share of a GPU: for Ray that is bookkeeping only
    return {}


class StoreActor:
    """The SnapshotStore: holds references to snapshots it owns, wakes those who wait."""

    def __init__(self, run: str, max_bytes: int, max_count: int):
        self._run = run
        self._spill = SpillFolder()
        self._store = SnapshotStore(max_bytes, max_count, delete=self._spill.delete)
        self._spilling = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._results: list[dict[str, Any]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"SnapshotStore({self._run})"

    async def register(self, name: str, policy: Policy, done: Sequence[int]) -> None:
        self._store.register(name, policy, done)
        await self._wake()

    async def unregister(self, name: str) -> None:
        self._store.unregister(name)

    async def announce(self, trainer: Any, step: int, time: float, nbytes: int, rest_nbytes: int | None) -> None:
        """The Trainer has a snapshot of `step`: pulls it. Readers are woken at once and wait for the object itself."""
        weights, rest, whole = trainer.snapshot.options(num_returns=3).remote(step)
        state = None if rest_nbytes is None else [rest]
        self._store.add(step, [weights], nbytes, time, state=state, state_nbytes=rest_nbytes or 0)
        await self._wake()
        task = asyncio.create_task(self._settle(trainer, step, whole))
        self._tasks.add(task)  # asyncio itself keeps only weak references
        task.add_done_callback(self._tasks.discard)

    async def _settle(self, trainer: Any, step: int, whole: Any) -> None:
        try:
            await whole
        except RayError:  # the Trainer died meanwhile
            self._store.lost(step)
            await self._wake()
            return
        trainer.release.remote(step)
        async with self._spilling:  # one at a time, or two would move the same
            for entry in self._store.overflow():
                path = await asyncio.to_thread(self._spill_payload, entry.step, entry.payload)
                self._store.moved(entry.step, path, on_disk=True)

    def _spill_payload(self, step: int, payload: list[Any]) -> Path:
        return self._spill.write(step, fetch(payload[0]))

    async def lost(self, step: int) -> None:
        self._store.lost(step)

    async def take(self, name: str) -> dict[str, Any]:
        """Long poll of a reader: {"step", "time", "weights": [ref]}, or {"end": bool}."""
        entry = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS), self._changed:
                await self._changed.wait_for(lambda: self._store.has_work(name) or self._store.finished(name))
                entry = self._store.take(name)
        if entry is None:
            return {"end": self._store.finished(name)}
        async with self._spilling:
            if entry.on_disk:
                arrays = await asyncio.to_thread(self._spill.read, entry.payload)
                self._store.moved(entry.step, [ray.put(arrays)], on_disk=False)
        return {"step": entry.step, "time": entry.time, "weights": entry.payload}

    async def done(self, name: str, step: int, metrics: dict[str, float]) -> None:
        self._store.done(name, step)
        self._results.append({"reader": name, "step": step, "metrics": metrics})
        await self._wake()

    async def results(self, seen: int) -> list[dict[str, Any]]:
        """Long poll of the driver: the results after the first `seen`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS), self._changed:
                await self._changed.wait_for(lambda: len(self._results) > seen)
        return self._results[seen:]

    async def newest_state(self) -> dict[str, Any] | None:
        newest = self._store.newest_state()
        return newest and {"step": newest[0], "weights": newest[1][0], "rest": newest[1][1]}

    async def close(self) -> None:
        """No snapshot will follow."""
        self._store.close()
        await self._wake()

    async def status(self) -> dict[str, Any]:
        return self._store.status()

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class TrainerActor:
    """The Trainer. `run` occupies one thread; the other methods are answered by others meanwhile."""

    def __init__(self, job: Job, resources: RoleResources, store: Any):
        self._run = job.run
        experiment = job.enter(resources, niceness=0)
        from raylingvo.actors.trainer import Trainer

        self._trainer = Trainer(experiment, Path(job.logdir), _Publisher(store))

    def __repr__(self) -> str:
        return f"Trainer({self._run})"

    def run(self) -> dict[str, Any]:
        return self._trainer.run()

    def status(self) -> dict[str, Any]:
        return self._trainer.status()

    def stop(self, reason: str, resumable: bool) -> None:
        self._trainer.stop(reason, resumable=resumable)

    def snapshot(self, step: int) -> tuple[Any, Any, bool]:
        """(weights, rest or None, True). The last, being small, tells its owner that all of them are there."""
        snapshot = self._trainer.snapshot(step)
        rest = None if snapshot.rest is None else (snapshot.rest, snapshot.position)
        return snapshot.weights, rest, True

    def release(self, step: int) -> None:
        self._trainer.release(step)


class _Publisher:
    """The store, as the Trainer sees it."""

    def __init__(self, store: Any):
        self._store = store
        self._me = ray.get_runtime_context().current_actor

    def announce(self, step: int, *, time: float, nbytes: int, rest_nbytes: int | None) -> None:
        self._store.announce.remote(self._me, step, time, nbytes, rest_nbytes)  # nobody waits for the answer

    def newest_state(self) -> tuple[int, Snapshot] | None:
        from raylingvo.actors.outbox import Snapshot

        newest = fetch(self._store.newest_state.remote())
        if newest is None:
            return None
        weights, (rest, position) = fetch([newest["weights"][0], newest["rest"][0]])
        return newest["step"], Snapshot(weights, rest, position)


class ReaderActor:
    """An Evaler or a Decoder."""

    def __init__(self, kind: str, dataset: str, name: str, job: Job, resources: RoleResources, store: Any):
        self._label = f"{kind.capitalize()}({job.run}, {dataset})"
        # On one machine training goes first. Accelerators do not care.
        self._experiment = job.enter(resources, niceness=5)
        self._arguments = dataset, Path(job.logdir)
        self._kind = kind
        self._feed = _Feed(store, name)

    def __repr__(self) -> str:
        return self._label

    def run(self) -> None:
        """Works until the store says that nothing will follow."""
        if self._kind == "evaler":
            from raylingvo.actors.evaler import Evaler as Role
        else:
            from raylingvo.actors.decoder import Decoder as Role
        with contextlib.closing(Role(self._experiment, *self._arguments)) as role:
            role.follow(self._feed)


class _Feed:
    """The store, as a reader sees it."""

    def __init__(self, store: Any, name: str):
        self._store = store
        self._name = name

    def next(self) -> Arrival | None:
        from raylingvo.actors.reader import Arrival

        while True:
            reply = fetch(self._store.take.remote(self._name), POLL_SECONDS + REPLY_SECONDS)
            if "step" not in reply:
                if reply["end"]:
                    return None
                continue
            try:
                weights = fetch(reply["weights"][0])
            except GetTimeoutError:
                raise
            except RayError:  # the Trainer died before it had handed them over
                fetch(self._store.lost.remote(reply["step"]))
                continue
            return Arrival(reply["step"], reply["time"], weights)

    def done(self, step: int, metrics: dict[str, float]) -> None:
        fetch(self._store.done.remote(self._name, step, metrics))


def start_store(run: str, *, max_bytes: int, max_count: int) -> Any:
    """Starts the SnapshotStore of a run."""
    options = {"num_cpus": 0, "name": f"SnapshotStore({run})", "max_concurrency": 1000}
    return ray.remote(StoreActor).options(**options).remote(run, max_bytes, max_count)


def start_trainer(job: Job, resources: RoleResources, store: Any) -> Any:
    """Starts the Trainer's actor; `run` starts training."""
    options = {**_options(resources), "max_concurrency": 8}
    return ray.remote(TrainerActor).options(**options).remote(job, resources, store)


def start_reader(kind: str, dataset: str, name: str, job: Job, resources: RoleResources, store: Any) -> Any:
    """Starts the actor of an Evaler or Decoder (`kind`: evaler, decoder), known to the store as `name`."""
    return ray.remote(ReaderActor).options(**_options(resources)).remote(kind, dataset, name, job, resources, store)


def _options(resources: RoleResources) -> Mapping[str, Any]:
    return {
        "num_cpus": resources.num_cpus,
        "num_gpus": resources.num_gpus,
        "resources": dict(resources.custom),
        "max_restarts": 0,  # the run starts a role again itself: it knows from which state, and counts
    }
