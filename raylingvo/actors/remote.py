"""Roles as Ray actors: the one place where a plain class becomes an actor, and where roles reach the store.

Who calls owns what comes back: the *store* calls the Trainer's `snapshot`, so that the object outlives the Trainer.
Large objects only ever travel as references inside a list, which Ray does not fetch for the callee.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from raylingvo import config
from raylingvo.actors import crashes, memory, priorities
from raylingvo.actors.calls import PAYLOAD_SECONDS, POLL_SECONDS, fetch
from raylingvo.actors.outbox import Announcement, Outbox, Snapshot, Version
from raylingvo.actors.store_actor import StoreActor
from raylingvo.data.paths import data_root

# Actors import this module before they know on which device they are to work: it must not import JAX.
if TYPE_CHECKING:
    from raylingvo.actors.reader import Arrival
    from raylingvo.actors.trainer import Trainer
    from raylingvo.experiment import Experiment, RoleResources


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


class TrainerActor:
    """The Trainer. `run` occupies one thread; the other methods are answered by others meanwhile."""

    def __init__(self, job: Job, platform: Mapping[str, str], store: Any):
        self._job = job
        self._platform = platform
        self._store = store
        # A request comes before there is a Trainer, or after: never in between, where an older one would follow it.
        self._requests = threading.Lock()
        self._trainer: Trainer | None = None
        self._outbox = Outbox()
        self._stop_request: bool | None = None  # whether the run will be resumed
        self._preempted = False
        self._rate_factor: float | None = None
        # Ray calls this in the main thread. What it would do itself is to end the process.
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # see cluster.py, blocked

    def __repr__(self) -> str:
        return f"Trainer({self._job.run})"

    def _on_sigterm(self, _number: int, _frame: Any) -> None:
        """The machine is being taken away: what can be saved in the time that is left is a checkpoint."""
        self._preempted = True
        if self._stop_request is None:
            self.stop(resumable=True)

    def run(self) -> dict[str, Any]:
        """Trains; returns what Trainer.run does, its last status, and whether it was SIGTERM that ended it.

        By then the store has all snapshots, if the run is not interrupted. What fails in here, the import of the user's
        modules too, is the run's failure and not the death of a role.
        """
        with crashes.recorded(Path(self._job.logdir), crashes.TRAINER):
            return self._run()

    def _run(self) -> dict[str, Any]:
        experiment = self._job.enter(self._platform)
        from raylingvo.actors.trainer import Trainer

        trainer = Trainer(experiment, Path(self._job.logdir), _Publisher(self._store), self._outbox)
        with self._requests:
            self._trainer = trainer
            if self._stop_request is not None:
                trainer.stop(resumable=self._stop_request)
            if self._rate_factor is not None:
                trainer.scale_rate(self._rate_factor)
        result = trainer.run()
        if not self._stop_request:  # else nothing will be evaluated, and the last step is on disk
            self._outbox.wait_handed_over(PAYLOAD_SECONDS)
        return {**result, "status": trainer.status(), "preempted": self._preempted}

    def status(self, seen: int = 0) -> dict[str, Any] | None:
        return self._trainer and self._trainer.status(seen)

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
        """(weights, rest or None, True), or (None, None, False) if the snapshot is not here any more.

        The last, being small, tells its owner that all of them are there.
        """
        try:
            snapshot = self._outbox.get(step)
        except KeyError:
            return None, None, False
        rest = None if snapshot.rest is None else (snapshot.rest, snapshot.position)
        return snapshot.weights, rest, True

    def handed_over(self, version: Version, announcement: Announcement, refs: list[Any]) -> None:
        """The store owns a snapshot. What its references [weights, rest or None] lead to is memory of this machine."""
        try:
            weights, rest = (ref and fetch(ref, PAYLOAD_SECONDS) for ref in refs)
        except RayError:
            return  # the store died; the next one pulls our own copy
        copied = Snapshot(weights, *(rest or (None, None)))
        self._outbox.handed_over(version, Announcement(*announcement), copied)

    def keep(self, version: Version, steps: list[int], states: list[int]) -> None:
        """Which of the snapshots that it has the store still needs, and which whole."""
        self._outbox.keep(version, steps, states)

    def announcements(self) -> list[Announcement]:
        """What a store that has lost its memory can pull again."""
        return self._outbox.announcements()


class _Publisher:
    """The store, as the Trainer sees it."""

    def __init__(self, store: Any):
        self._store = store
        self._me = ray.get_runtime_context().current_actor

    def announce(self, announcement: Announcement) -> None:
        self._store.announce.remote(self._me, announcement)  # nobody waits for the answer

    def newest_state(self) -> tuple[int, Snapshot] | None:
        while (newest := fetch(self._store.newest_state.remote())) is not None:
            try:
                weights, (rest, position) = fetch([newest["weights"][0], newest["rest"][0]], PAYLOAD_SECONDS)
            except GetTimeoutError:
                raise
            except RayError:  # the machine that held it is gone
                fetch(self._store.lost.remote(newest["life"], newest["step"], newest["weights"]))
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
            # It may have to be brought back from a slow disk.
            reply = fetch(self._store.take.remote(self._name), POLL_SECONDS + PAYLOAD_SECONDS)
            if "step" not in reply:
                if reply["end"]:
                    return None
                continue
            try:
                weights = fetch(reply["weights"][0], PAYLOAD_SECONDS)
            except (GetTimeoutError, RayTaskError):
                raise
            except RayError:  # the Trainer died before it had handed them over, or the store
                weights = None
            if weights is None:
                fetch(self._store.lost.remote(reply["life"], reply["step"], reply["weights"]))
                continue
            return Arrival(reply["step"], reply["time"], weights)

    def done(self, step: int, metrics: dict[str, float]) -> None:
        fetch(self._store.done.remote(self._name, step, metrics))


def start_store(run: str, *, max_bytes: int, max_count: int) -> Any:
    """Starts the SnapshotStore of a run. Ray does so again whenever it dies, and repeats the calls to it."""
    options = {"num_cpus": 0, "max_concurrency": 1000, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(StoreActor).options(**options).remote(run, uuid.uuid4().hex, max_bytes, max_count)


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
