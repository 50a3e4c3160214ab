"""A run: an experiment, a logdir and a Ray cluster, from the request to its result."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ray

from raylingvo.actors import memory, priorities, remote
from raylingvo.actors.logdir import Logdir
from raylingvo.actors.supervisor import Supervisor
from raylingvo.errors import RequestError
from raylingvo.experiment import Experiment
from raylingvo.monitor.live import View, open_view
from raylingvo.monitor.metrics_log import read_metrics

_WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class RunFailed(RuntimeError):
    """A role failed. `result` is what the run reached; the message says what happened, `trace` where."""

    def __init__(self, message: str, result: dict[str, Any], trace: str = ""):
        super().__init__(message)
        self.result = result
        self.trace = trace


def run(
    experiment: Experiment,
    logdir: str | os.PathLike[str],
    *,
    address: str | None = None,
    view: View | None = None,
    started: float | None = None,
) -> dict[str, Any]:
    """Runs an experiment in a logdir to its end, or goes on with it there; returns what `run --json` prints.

    address: of a Ray cluster to join ("auto": the one this machine belongs to); None starts one on this machine, or
    uses the one this process has initialised. Ctrl-C and SIGTERM finish the step, write a checkpoint and return with
    status "interrupted"; a second one raises KeyboardInterrupt.
    started: Unix seconds from which `first_step_seconds` counts; now if None.
    Raises RequestError before anything starts if the request is wrong, RunFailed if a role failed for good.
    """
    started = time.time() if started is None else started
    for name in dict.fromkeys([experiment.train.dataset, *experiment.eval, *experiment.decode]):
        experiment.datasets[name].check()
    with contextlib.closing(Logdir(Path(logdir), experiment)) as home:
        if home.info["status"] == "finished":
            return home.info["result"]
        given = home.experiment_for_roles()
        with (
            _cluster(address) as (dashboard, own),
            _signals() as stop_request,
            view or open_view() as shown,
        ):
            _check_resources(experiment, address)
            if ray.cluster_resources().get("GPU") and not experiment.resources.trainer.num_gpus:
                shown.event("there are GPUs that no role asks for: --set resources.trainer.num_gpus=1")
            warm_start = given.train.warm_start
            source = warm_start and {"logdir": warm_start.logdir, "checkpoint": warm_start.checkpoint}
            home.begin(list(sys.argv), dashboard=dashboard, warm_start=source)
            job = remote.Job(home.info["id"], given, home.path, own_cluster=own)
            supervisor = Supervisor(experiment, job, home.path, shown, dashboard)
            try:
                ending, reason = supervisor.wait(stop_request)
            except BaseException as error:
                status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                home.update(status=status, ended=time.time(), stop_reason=f"{type(error).__name__}: {error}")
                if isinstance(error, RequestError):
                    home.forget()
                raise
            # On disk before Ray is shut down, which takes a second or more.
            result = _result(experiment, home, supervisor, ending, reason, started)
            home.update(status=ending, ended=time.time(), stop_reason=reason, step=result["step"], result=result)
    if ending == "failed":
        raise RunFailed(reason, result, supervisor.failures[0][1])
    return result


def _result(
    experiment: Experiment, home: Logdir, supervisor: Supervisor, ending: str, reason: str, started: float
) -> dict[str, Any]:
    train = _last_metrics(home.path / "train")
    trained, first_step = supervisor.trained, supervisor.first_step_time
    return {
        "run": home.info["id"],
        "experiment": experiment.name,
        "status": ending,
        "stop_reason": reason,
        "step": trained.get("step", train.get("step", 0)),
        "train": train,
        "eval": {name: _last_metrics(home.path / f"eval_{name}") for name in experiment.eval},
        "decode": {name: _last_metrics(home.path / f"decode_{name}") for name in experiment.decode},
        "steps_per_second": trained.get("steps_per_second"),
        "examples_per_second": trained.get("examples_per_second"),
        "first_step_seconds": first_step and first_step - started,
        "logdir": str(home.path),
        "dashboard": home.info["dashboard"],
    }


def _last_metrics(directory: Path) -> dict[str, Any]:
    records = read_metrics(directory)
    return {name: value for name, value in records[-1].items() if name != "time"} if records else {}


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[tuple[str | None, bool]]:
    """Ray, as asked for: the cluster at `address`, the one this process is connected to, or one of our own.

    Yields (address of the dashboard if it is to be told, whether it is one of our own).
    """
    if ray.is_initialized():
        if address is not None:
            raise RequestError(f"--address {address}: this process is connected to a Ray cluster already")
        yield None, False  # whoever initialised it has been told the dashboard's address
        return
    # No reports to anybody unless the user has asked for them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # An actor without GPUs keeps its CUDA_VISIBLE_DEVICES (it runs on the CPU anyway); this also silences a warning.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray would run all actors at niceness 15. Training is what the machine is there for; the others step back.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        # "local" and not the default: never join somebody else's cluster by accident.
        with _blocked(_WATCHED), memory.kept():
            context = ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address is None:
            raise
        raise RequestError(f"--address {address}: {str(error).strip().splitlines()[0]}") from error
    if address is None:
        priorities.let_ray_step_back()
    try:
        yield context.dashboard_url, address in (None, "local")
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _blocked(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Blocks signals for this thread and, for ever, for the processes and threads it starts meanwhile.

    A terminal, `timeout` and batch systems signal the whole process group. Ray's processes are to outlive that: they
    end when this one has written its checkpoint, or by the kernel when it dies. (Ray does so for SIGINT only.)
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], str | None]]:
    """While this is open, the first SIGINT, SIGTERM or SIGHUP is only noted; the second raises KeyboardInterrupt."""
    received: list[str] = []

    def note(number: int, _frame: Any) -> None:
        if received:
            raise KeyboardInterrupt(f"{signal.Signals(number).name} after {received[0]}")
        received.append(signal.Signals(number).name)

    # Only the main thread may; the owner of another will stop us in another way.
    watched = _WATCHED if threading.current_thread() is threading.main_thread() else ()
    # After ray.init, which sets a handler of its own for SIGTERM.
    previous = {number: signal.signal(number, note) for number in watched}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _check_resources(experiment: Experiment, address: str | None) -> None:
    """Raises RequestError if this machine can never hold all roles at once (a cluster may grow)."""
    if address is not None:
        return
    have = ray.cluster_resources()
    wanted: dict[str, float] = {}
    shares = [
        (experiment.resources.trainer, 1),
        (experiment.resources.evaler, len(experiment.eval)),
        (experiment.resources.decoder, len(experiment.decode)),
    ]
    for role, count in shares:
        for name, amount in {"CPU": role.num_cpus, "GPU": role.num_gpus, **role.custom}.items():
            wanted[name] = wanted.get(name, 0.0) + amount * count
    for name, amount in wanted.items():
        if amount > have.get(name, 0.0):
            raise RequestError(
                f"resources: the roles ask for {amount:g} {name}, this machine has {have.get(name, 0.0):g}; "
                "lower resources.*, or join a cluster with --address"
            )
