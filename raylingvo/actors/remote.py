"""Roles as Ray actors: the one place where a plain class becomes an actor, and where roles reach the store.

Who calls owns what comes back: the *store* calls the Trainer's `snapshot`, so that the object outlives the Trainer.
Large objects only ever travel as references inside a list, which Ray does not fetch for the callee.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raylingvo import config
from raylingvo.actors import crashes, memory, priorities
from raylingvo.actors.calls import PAYLOAD_SECONDS, POLL_SECONDS, fetch
from raylingvo.actors.gang import Gang
from raylingvo.actors.metrics import environment as metrics_environment
from raylingvo.actors.metrics import exported
from raylingvo.actors.outbox import Announcement, Outbox, Snapshot, Version
from raylingvo.actors.store_actor import HostActor, StoreActor
from raylingvo.actors.within import Command, Within
from raylingvo.actors.workers import Workers
from raylingvo.data.paths import data_root
from raylingvo.errors import RequestError
from raylingvo.monitor.exported import Sample, reader_samples

# Actors import this module before they know on which device they are to work: it must not import JAX.
if TYPE_CHECKING:
    from raylingvo.actors.reader import Arrival
    from raylingvo.actors.trainer import Adoption, Trainer
    from raylingvo.experiment import Experiment, Resources, RoleResources


# The namespace of their names, RUN/LIFE: by these other commands find the Trainer of a run.
TRAINERS = "raylingvo-trainers"


class Job:
    """What every role of a run is told when it starts: plain data, unpickled without the user's modules."""

    def __init__(self, run: str, experiment: Experiment, logdir: Path, within: Within):
        self.run = run
        self.config = config.dump(experiment)
        self.logdir = str(logdir)
        self.import_paths = [path for path in sys.path if path]
        self.environment = {"RAYLINGVO_DATA": str(data_root()), **metrics_environment(), **within.environment}
        self.data = list(within.data)
        self.is_steered = within.commands is not None  # somebody waits for its metrics
        # In a cluster of one's own Ray's processes have inherited the environment of this one; else each role asks for
        # what it needs. Such a process is one that Ray has not started beforehand: a second or two.
        self.runtime_env = {} if within.cluster.own else {"env_vars": memory.wanted()}

    def enter(self, platform: Mapping[str, str]) -> Experiment:
        """In the role's process, before JAX is imported: makes the process the role's, returns the experiment."""
        os.environ.update(self.environment, **platform)
        sys.path.extend(path for path in self.import_paths if path not in sys.path)
        from raylingvo.data import opened
        from raylingvo.experiment import Experiment

        for ref in self.data:
            opened.add(*fetch(ref, PAYLOAD_SECONDS))
        return config.load(self.config, Experiment)


def _platform(resources: RoleResources) -> dict[str, str]:
    if not resources.num_gpus and not resources.custom.get("TPU"):
        return {"JAX_PLATFORMS": "cpu"}  # Ray does not hide GPUs from actors that asked for none
    if 0 < resources.num_gpus < 1:
        return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # a share of a GPU: for Ray that is bookkeeping only
    return {}


class TrainerActor:
    """One of the hosts of the Trainer. `run` occupies one thread; the other methods are answered by others meanwhile.

    What is asked of host 0 is asked of all.
    """

    def __init__(self, job: Job, platform: Mapping[str, str], store: Any, trainer: str, index: int, count: int):
        """trainer: a name that no other life of the Trainer has. index, count: of this host, and how many there are."""
        # A request comes before there is a Trainer, or after: never in between, where an older one would follow it.
        self._requests = threading.Lock()
        self.renew(job, platform, store, trainer, index, count)
        # Ray calls this in the main thread. What it would do itself is to end the process.
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # see cluster.py, blocked

    def renew(self, job: Job, platform: Mapping[str, str], store: Any, trainer: str, index: int, count: int) -> None:
        """Makes this the Trainer of another run."""
        with self._requests:
            self._job = job
            self._platform = platform
            self._store = store
            self._host = trainer, index, count
            self._trainer: Trainer | None = None
            self._outbox = Outbox()
            self._stop_request: bool | None = None  # whether the run will be resumed
            self._preempted = False
            self._rate_factor: float | None = None
            self._adoption: Adoption | None = None

    def __repr__(self) -> str:
        _, index, count = self._host
        return f"Trainer({self._job.run})" if count == 1 else f"Trainer({self._job.run}, host {index} of {count})"

    def _on_sigterm(self, _number: int, _frame: Any) -> None:
        """The machine is being taken away: what can be saved in the time that is left is a checkpoint."""
        self._preempted = True
        if self._stop_request is None:
            self.stop(resumable=True)

    def meeting_point(self) -> str:
        """host:port, free now, where all hosts can find this one."""
        address = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((address, 0))
            return f"{address}:{probe.getsockname()[1]}"

    def run(self, coordinator: str = "") -> dict[str, Any]:
        """Trains; returns what Trainer.run does, its last status, and whether it was SIGTERM that ended it.

        coordinator: the `meeting_point` of host 0, if there are several.

        By then the store has all snapshots, if the run is not interrupted. What fails in here, the import of the user's
        modules too, is the run's failure and not the death of a role.
        """
        with crashes.recorded(Path(self._job.logdir), crashes.trainer(self._host[1])):
            return self._run(coordinator)

    def _run(self, coordinator: str) -> dict[str, Any]:
        experiment = self._job.enter(self._platform)
        from raylingvo.actors.trainer import Trainer
        from raylingvo.parallel import hosts

        name, index, count = self._host
        address = ray.util.get_node_ip_address()
        host = hosts.Host(index=index, count=count, address=address, coordinator=coordinator)
        hosts.join(host, experiment.resources.cpu_devices)
        publisher = _Publisher(self._store, name, index, count)
        trainer = Trainer(experiment, Path(self._job.logdir), publisher, self._outbox, host)
        with self._requests:
            self._trainer = trainer
            if self._stop_request is not None:
                trainer.stop(resumable=self._stop_request)
            if self._rate_factor is not None:
                trainer.scale_rate(self._rate_factor)
            if self._adoption is not None:
                trainer.adopt(self._adoption)
                self._adoption = None  # it keeps another run's memory
        with exported(self._job.run, trainer.exported) if index == 0 else contextlib.nullcontext():
            result = trainer.run()
        if not result.pop("resumes"):  # else nothing will be evaluated, and the last step is on disk
            self._outbox.wait_handed_over(PAYLOAD_SECONDS)
        hosts.leave(host)
        return {**result, "status": trainer.status(), "preempted": self._preempted}

    def status(self, seen: int = 0) -> dict[str, Any] | None:
        trainer = self._trainer
        return trainer and {**trainer.status(seen), "samples": trainer.exported()}

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

    def adopt(self, command: Command) -> None:
        """Goes on with another run's train state, see Trainer.adopt.

        Raises RayError if that state is lost.
        """
        from raylingvo.actors.trainer import Adoption

        adoption = Adoption(_fetch_state(command.state), command)
        with self._requests:
            if self._trainer is None:
                self._adoption = adoption
            else:
                self._trainer.adopt(adoption)

    def profile(self, steps: int) -> dict[str, Any]:
        """See profiling.take."""
        from raylingvo.actors import profiling

        trainer = self._trainer
        if trainer is None:
            raise RequestError("the Trainer has not started yet: there are no steps to profile")
        return profiling.take(Path(self._job.logdir) / "train", steps, trainer.status, trainer.done)

    def snapshot(self, step: int) -> tuple[Any, Any, bool]:
        """(weights, rest or None, True), or (None, None, False) if the snapshot is not here any more.

        The last, being small, tells its owner that all of them are there.
        """
        try:
            snapshot = self._outbox.get(step)
        except KeyError:
            return None, None, False
        places, rest_places = snapshot.places or (None, None)
        rest = None if snapshot.rest is None else (snapshot.rest, rest_places, snapshot.position)
        return (snapshot.weights, places, dict(snapshot.settings)), rest, True

    def handed_over(self, version: Version, announcement: Announcement, refs: list[Any]) -> None:
        """The store owns a snapshot. What its references [weights, rest or None] lead to is memory of this machine."""
        try:
            weights, rest = (ref and fetch(ref, PAYLOAD_SECONDS) for ref in refs)
        except RayError:
            return  # the store died; the next one pulls our own copy
        self._outbox.handed_over(version, Announcement(*announcement), _snapshot(weights, rest))

    def keep(self, version: Version, steps: list[int], states: list[int]) -> None:
        """Which of the snapshots that it has the store still needs, and which whole."""
        self._outbox.keep(version, steps, states)

    def announcements(self) -> list[Announcement]:
        """What a store that has lost its memory can pull again."""
        return self._outbox.announcements()


def _snapshot(weights: Any, rest: Any) -> Snapshot:
    """From what `TrainerActor.snapshot` has given."""
    arrays, places, settings = weights
    rest_arrays, rest_places, position = rest or (None, None, None)
    return Snapshot(arrays, rest_arrays, position, None if places is None else (places, rest_places), settings)


def _fetch_state(newest: Mapping[str, Any]) -> list[Snapshot]:
    """What each host gave of the state that `StoreActor.newest_state` tells of."""
    weights, rests = (fetch(newest[part], PAYLOAD_SECONDS) for part in ("weights", "rest"))
    return [_snapshot(*of_host) for of_host in zip(weights, rests, strict=True)]


class _Publisher:
    """The store, as one host of the Trainer sees it."""

    def __init__(self, store: Any, trainer: str, index: int, count: int):
        self._store = store
        self._me = HostActor(trainer, index, count, ray.get_runtime_context().current_actor)

    def announce(self, announcement: Announcement) -> None:
        self._store.announce.remote(self._me, announcement)  # nobody waits for the answer

    def newest_state(self) -> tuple[int, list[Snapshot]] | None:
        while (newest := fetch(self._store.newest_state.remote())) is not None:
            try:
                return newest["step"], _fetch_state(newest)
            except GetTimeoutError:
                raise
            except RayError:  # the machine that held it is gone
                fetch(self._store.lost.remote(newest["life"], newest["step"], newest["weights"]))
        return None


class ReaderActor:
    """An Evaler or a Decoder."""

    def __init__(self, kind: str, dataset: str, name: str, job: Job, platform: Mapping[str, str], store: Any):
        # On one machine training goes first, unless that would be in vain. Accelerators do not care.
        if not job.is_steered:
            os.nice(priorities.READERS)
        self.renew(kind, dataset, name, job, platform, store)

    def renew(self, kind: str, dataset: str, name: str, job: Job, platform: Mapping[str, str], store: Any) -> None:
        """Makes this a reader of another run."""
        self._kind = kind
        self._dataset = dataset
        self._job = job
        self._platform = platform
        self._feed = _Feed(store, name)

    def __repr__(self) -> str:
        return f"{self._kind.capitalize()}({self._job.run}, {self._dataset})"

    def run(self) -> None:
        """Works until the store says that nothing will follow."""
        experiment = self._job.enter(self._platform)
        if self._kind == "evaler":
            from raylingvo.actors.evaler import Evaler as Role
        else:
            from raylingvo.actors.decoder import Decoder as Role
        with (
            contextlib.closing(Role(experiment, self._dataset, Path(self._job.logdir))) as role,
            exported(self._job.run, lambda: self._feed.samples(self._kind, self._dataset)),
        ):
            role.follow(self._feed)


class _Feed:
    """The store, as a reader sees it."""

    def __init__(self, store: Any, name: str):
        self._store = store
        self._name = name
        self._working_since: float | None = None  # as SnapshotStore.status has it
        self._last: tuple[int | None, dict[str, float]] = None, {}  # step and metrics of the last result

    def samples(self, kind: str, dataset: str) -> list[Sample]:
        step, metrics = self._last
        return reader_samples(kind, dataset, metrics, step, self._working_since, time.time())

    def next(self) -> Arrival | None:
        from raylingvo.actors.reader import Arrival
        from raylingvo.training.pieces import Assembled

        while True:
            # It may have to be brought back from a slow disk.
            reply = fetch(self._store.take.remote(self._name), POLL_SECONDS + PAYLOAD_SECONDS)
            if "step" not in reply:
                if reply["end"]:
                    return None
                continue
            try:
                parts = fetch(reply["weights"], PAYLOAD_SECONDS)
            except (GetTimeoutError, RayTaskError):
                raise
            except RayError:  # the Trainer died before it had handed them over, or the store
                parts = []
            if not parts or None in parts:
                fetch(self._store.lost.remote(reply["life"], reply["step"], reply["weights"]))
                continue
            self._working_since = reply["time"]
            leaves = Assembled((arrays, places) for arrays, places, _ in parts).leaves()
            *_, settings = parts[0]  # all hosts have the same
            return Arrival(reply["step"], reply["time"], leaves, settings)

    def done(self, step: int, metrics: dict[str, float]) -> None:
        self._last, self._working_since = (step, metrics), None
        fetch(self._store.done.remote(self._name, step, metrics))


def start_store(job: Job, resources: RoleResources, *, max_bytes: int, max_count: int) -> Any:
    """Starts the SnapshotStore of a run. Ray does so again whenever it dies, and repeats the calls to it."""
    options = {**_amounts(resources), "max_concurrency": 1000, "max_restarts": -1, "max_task_retries": -1}
    args = job.run, uuid.uuid4().hex, max_bytes, max_count, metrics_environment()
    return ray.remote(StoreActor).options(**options).remote(*args)


def start_trainer(workers: Workers, job: Job, resources: Resources, store: Any) -> Gang:
    """Starts the Trainer's actors, one for each host; `Gang.run` starts training."""
    options = {**_options(job, resources.trainer), "max_concurrency": 8}
    name, count, platform = uuid.uuid4().hex, resources.hosts, _platform(resources.trainer)
    group = None
    # What has reserved room for the whole run has reserved it for them too.
    if count > 1 and ray.util.get_current_placement_group() is None:
        # All of them or none: some would wait for the others on machines that are of no use meanwhile.
        group = placement_group([resources.trainer.amounts or {"CPU": 0.001}] * count, strategy="SPREAD")
    actors = []
    for index in range(count):
        place = {} if group is None else {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, index)}
        # One that will be renewed cannot have a name of this run.
        named = {"name": f"{job.run}/{name}", "namespace": TRAINERS} if index == 0 and not workers.keep else {}
        args = job, platform, store, name, index, count
        actors.append(workers.start(TrainerActor, {**options, **place, **named}, *args))
    return Gang(name, actors, group, workers)


def start_reader(
    workers: Workers, kind: str, dataset: str, name: str, job: Job, resources: RoleResources, store: Any
) -> Any:
    """Starts the actor of an Evaler or Decoder (`kind`: evaler, decoder), known to the store as `name`."""
    args = kind, dataset, name, job, _platform(resources), store
    return workers.start(ReaderActor, _options(job, resources), *args, use=name)


def _options(job: Job, resources: RoleResources) -> dict[str, Any]:
    return {
        **_amounts(resources),
        "runtime_env": job.runtime_env,
        "max_restarts": 0,  # the run starts a role again itself: it knows from which state, and counts
    }


def _amounts(resources: RoleResources) -> dict[str, Any]:
    return {
        "num_cpus": resources.num_cpus,
        "num_gpus": resources.num_gpus,
        "resources": dict(resources.custom),
    }
