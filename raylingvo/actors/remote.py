"""Roles as Ray actors: the one place where a plain class becomes an actor, and where roles reach the store.

Who calls owns what comes back: the *store* calls the Trainer's `snapshot`, so that the object outlives the Trainer.
Large objects only ever travel as references inside a list, which Ray does not fetch for the callee.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError

from raylingvo import config
from raylingvo.actors import memory, priorities
from raylingvo.actors.snapshot_store import SnapshotStore
from raylingvo.actors.spill import SpillFolder
from raylingvo.data.paths import data_root

# Actors import this module before they know on which device they are to work: it must not import JAX.
if TYPE_CHECKING:
    from raylingvo.actors.outbox import Snapshot
    from raylingvo.actors.reader import Arrival
    from raylingvo.actors.trainer import Trainer
    from raylingvo.experiment import Experiment, Policy, RoleResources

# A long poll returns empty-handed after this long, so that nobody waits for ever for an actor that is gone.
POLL_SECONDS = 20.0
REPLY_SECONDS = 60.0  # how long a role waits for another's answer before it gives up
PAYLOAD_SECONDS = 1800.0  # and for weights, which may have to cross a network


def fetch(ref: Any, timeout: float = REPLY_SECONDS) -> Any:
    """What another role answered, waited for at most `timeout` seconds."""
    return ray.get(ref, timeout=timeout)


class Job:
    """What every role of a run is told when it starts: plain data, unpickled without the user's modules.

    own_cluster: Ray's processes have inherited the environment of this one; else each role asks for what it needs.
    """

    def __init__(self, run: str, experiment: Experiment, logdir: Path, *, own_cluster: bool):
        self.run = run
        self.config = config.dump(experiment)
        self.logdir = str(logdir)
        self.import_paths = [path for path in sys.path if path]
        self.environment = {"RAYLINGVO_DATA": str(data_root())}
        # A process with an environment of its own is one that Ray has not started beforehand: a second or two.
        self.runtime_env = {} if own_cluster else {"env_vars": memory.wanted()}

    def enter(self, platform: Mapping[str, str]) -> Experiment:
        """In the role's process, before JAX is imported: makes the process the role's, returns the experiment."""
        os.environ.update(self.environment, **platform)
        sys.path.extend(path for path in self.import_paths if path not in sys.path)
        from raylingvo.experiment import Experiment

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
        self._failure: Exception | None = None
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
            trainer.release.remote(step)
            self._store.arrived(step)
            async with self._spilling:  # one at a time, or two would move the same
                for entry in self._store.overflow():
                    path = await asyncio.to_thread(self._spill_payload, entry.step, entry.payload)
                    self._store.moved(entry.step, path, on_disk=True)
        except RayActorError:  # the Trainer died before it had handed the snapshot over
            self._store.lost(step)
        except Exception as error:  # a full disk or object store: nobody awaits this task, so `results` raises it
            self._failure = error
        await self._wake()

    def _spill_payload(self, step: int, payload: list[Any]) -> Path:
        return self._spill.write(step, fetch(payload[0], PAYLOAD_SECONDS))

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
        if entry.on_disk:
            async with self._spilling:
                if entry.on_disk:  # another reader may have had it brought back meanwhile
                    arrays = await asyncio.to_thread(self._spill.read, entry.payload)
                    self._store.moved(entry.step, [ray.put(arrays)], on_disk=False)
        return {"step": entry.step, "time": entry.time, "weights": entry.payload}

    async def done(self, name: str, step: int, metrics: dict[str, float]) -> None:
        self._store.done(name, step)
        self._results.append({"reader": name, "step": step, "metrics": metrics})
        await self._wake()

    async def results(self, seen: int) -> list[dict[str, Any]]:
        """Long poll of the driver: the results after the first `seen`. Raises what went wrong in the background."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS), self._changed:
                await self._changed.wait_for(lambda: len(self._results) > seen or self._failure)
        if self._failure is not None:
            raise self._failure
        return self._results[seen:]

    async def newest_state(self) -> dict[str, Any] | None:
        newest = self._store.newest_state()
        return newest and {"step": newest[0], "weights": newest[1][0], "rest": newest[1][1]}

    async def close(self, last_step: int) -> None:
        """No snapshot will follow that of `last_step`."""
        self._store.close(last_step)
        await self._wake()

    async def status(self) -> dict[str, Any]:
        return self._store.status()

    async def shutdown(self) -> None:
        """Removes what lies on disk; to be called before the actor is killed, which runs no clean-up."""
        self._spill.close()

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class TrainerActor:
    """The Trainer. `run` occupies one thread; the other methods are answered by others meanwhile."""

    def __init__(self, job: Job, platform: Mapping[str, str], store: Any):
        self._job = job
        self._platform = platform
        self._store = store
        # A request comes before there is a Trainer, or after: never in between, where an older one would follow it.
        self._requests = threading.Lock()
        self._trainer: Trainer | None = None
        self._stop_request: bool | None = None  # whether the run will be resumed
        self._rate_factor: float | None = None

    def __repr__(self) -> str:
        return f"Trainer({self._job.run})"

    def run(self) -> dict[str, Any]:
        """Trains; returns what Trainer.run does, and its last status.

        What fails in here, the import of the user's modules too, is the run's failure and not the death of a role.
        """
        experiment = self._job.enter(self._platform)
        from raylingvo.actors.trainer import Trainer

        trainer = Trainer(experiment, Path(self._job.logdir), _Publisher(self._store))
        with self._requests:
            self._trainer = trainer
            if self._stop_request is not None:
                trainer.stop(resumable=self._stop_request)
            if self._rate_factor is not None:
                trainer.scale_rate(self._rate_factor)
        result = trainer.run()
        return {**result, "status": trainer.status()}

    def status(self) -> dict[str, Any] | None:
        return self._trainer and self._trainer.status()

    def stop(self, resumable: bool) -> None:
        with self._requests:
            self._stop_request = resumable
            if self._trainer is not None:
                self._trainer.stop(resumable=resumable)

    def scale_rate(self, factor: float) -> None:
        with self._requests:
            self._rate_factor = factor
            if self._trainer is not None:
                self._trainer.scale_rate(factor)

    def snapshot(self, step: int) -> tuple[Any, Any, bool]:
        """(weights, rest or None, True). The last, being small, tells its owner that all of them are there."""
        assert self._trainer is not None  # it has announced the step
        snapshot = self._trainer.snapshot(step)
        rest = None if snapshot.rest is None else (snapshot.rest, snapshot.position)
        return snapshot.weights, rest, True

    def release(self, step: int) -> None:
        assert self._trainer is not None
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

        while (newest := fetch(self._store.newest_state.remote())) is not None:
            try:
                weights, (rest, position) = fetch([newest["weights"][0], newest["rest"][0]], PAYLOAD_SECONDS)
            except GetTimeoutError:
                raise
            except RayError:  # the machine that held it is gone
                fetch(self._store.lost.remote(newest["step"]))
                continue
            return newest["step"], Snapshot(weights, rest, position)
        return None


class ReaderActor:
    """An Evaler or a Decoder."""

    def __init__(self, kind: str, dataset: str, name: str, job: Job, platform: Mapping[str, str], store: Any):
        self._kind = kind
        self._dataset = dataset
        self._job = job
        self._platform = platform
        self._feed = _Feed(store, name)

    def __repr__(self) -> str:
        return f"{self._kind.capitalize()}({self._job.run}, {self._dataset})"

    def run(self) -> None:
        """Works until the store says that nothing will follow."""
        # On one machine training goes first. Accelerators do not care.
        os.nice(priorities.READERS)
        experiment = self._job.enter(self._platform)
        if self._kind == "evaler":
            from raylingvo.actors.evaler import Evaler as Role
        else:
            from raylingvo.actors.decoder import Decoder as Role
        with contextlib.closing(Role(experiment, self._dataset, Path(self._job.logdir))) as role:
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
                weights = fetch(reply["weights"][0], PAYLOAD_SECONDS)
            except (RayActorError, ObjectLostError):  # the Trainer died before it had handed them over
                fetch(self._store.lost.remote(reply["step"]))
                continue
            return Arrival(reply["step"], reply["time"], weights)

    def done(self, step: int, metrics: dict[str, float]) -> None:
        fetch(self._store.done.remote(self._name, step, metrics))


def start_store(run: str, *, max_bytes: int, max_count: int) -> Any:
    """Starts the SnapshotStore of a run."""
    options = {"num_cpus": 0, "max_concurrency": 1000}
    return ray.remote(StoreActor).options(**options).remote(run, max_bytes, max_count)


def start_trainer(job: Job, resources: RoleResources, store: Any) -> Any:
    """Starts the Trainer's actor; `run` starts training."""
    options = {**_options(job, resources), "max_concurrency": 8}
    return ray.remote(TrainerActor).options(**options).remote(job, _platform(resources), store)


def start_reader(kind: str, dataset: str, name: str, job: Job, resources: RoleResources, store: Any) -> Any:
    """Starts the actor of an Evaler or Decoder (`kind`: evaler, decoder), known to the store as `name`."""
    return (
        ray.remote(ReaderActor)
        .options(**_options(job, resources))
        .remote(kind, dataset, name, job, _platform(resources), store)
    )


def _options(job: Job, resources: RoleResources) -> Mapping[str, Any]:
    return {
        "num_cpus": resources.num_cpus,
        "num_gpus": resources.num_gpus,
        "resources": dict(resources.custom),
        "runtime_env": job.runtime_env,
        "max_restarts": 0,  # the run starts a role again itself: it knows from which state, and counts
    }
