"""A run: an experiment, a logdir and a Ray cluster, from the request to its result."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray

from raylingvo.actors import remote
from raylingvo.actors.cluster import STOP_SIGNALS, connected
from raylingvo.actors.logdir import Logdir
from raylingvo.actors.supervisor import Supervisor
from raylingvo.actors.within import Within
from raylingvo.errors import RequestError
from raylingvo.experiment import Experiment
from raylingvo.monitor.live import View, open_view
from raylingvo.monitor.metrics_log import read_metrics


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
    stop_request: Callable[[], str | None] | None = None,
    within: Within | None = None,
) -> dict[str, Any]:
    """Runs an experiment in a logdir to its end, or goes on with it there; returns what `run --json` prints.

    address: of a Ray cluster to join ("auto": the one this machine belongs to); None starts one on this machine, or
    uses the one this process has initialised. Ctrl-C and SIGTERM finish the step, write a checkpoint and return with
    status "interrupted"; a second one raises KeyboardInterrupt.
    started: Unix seconds from which `first_step_seconds` counts; now if None.
    stop_request: asked about once a second, and instead of signals, for the reason to stop as the first one does.
    Raises RequestError before anything starts if the request is wrong, RunFailed if a role failed for good.
    """
    started = time.time() if started is None else started
    for name in dict.fromkeys([experiment.train.dataset, *experiment.eval, *experiment.decode]):
        experiment.datasets[name].check()
    with contextlib.closing(Logdir(Path(logdir), experiment, within and within.run)) as home:
        if home.info["status"] == "finished":
            return home.info["result"]
        given = home.experiment_for_roles()
        with (
            contextlib.nullcontext(within.cluster) if within else connected(address) as cluster,
            contextlib.nullcontext(stop_request) if stop_request else noted_signals() as asked_to_stop,
            view or open_view() as shown,
        ):
            if not cluster.may_grow:
                _check_resources(experiment)
            warm_start = given.train.warm_start
            source = warm_start and {"logdir": warm_start.logdir, "checkpoint": warm_start.checkpoint}
            at_home = within or Within(cluster=cluster)
            home.begin(
                list(sys.argv),
                dashboard=cluster.dashboard,
                # Of a trial of a sweep none: its Trainer is one of several runs, and has no name by which to find it.
                ray=None if at_home.workers.keep else {"address": cluster.address, "own": cluster.own},
                warm_start=source,
            )
            try:
                at_home.begun()
                if ray.cluster_resources().get("GPU") and not experiment.resources.trainer.num_gpus:
                    shown.event("there are GPUs that no role asks for: --set resources.trainer.num_gpus=1")
                job = remote.Job(home.info["id"], given, home.path, at_home)
                supervisor = Supervisor(experiment, job, home.path, shown, at_home)
                ending, reason = supervisor.wait(asked_to_stop)
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
        **supervisor.survived,
        "logdir": str(home.path),
        "dashboard": home.info["dashboard"],
    }


def _last_metrics(directory: Path) -> dict[str, Any]:
    records = read_metrics(directory)
    return {name: value for name, value in records[-1].items() if name != "time"} if records else {}


@contextlib.contextmanager
def noted_signals() -> Iterator[Callable[[], str | None]]:
    """While this is open, the first SIGINT, SIGTERM or SIGHUP is only noted; the second raises KeyboardInterrupt."""
    received: list[str] = []

    def note(number: int, _frame: Any) -> None:
        if received:
            raise KeyboardInterrupt(f"{signal.Signals(number).name} after {received[0]}")
        received.append(signal.Signals(number).name)

    # Only the main thread may; the owner of another has `stop_request`.
    watched = STOP_SIGNALS if threading.current_thread() is threading.main_thread() else ()
    # After ray.init, which sets a handler of its own for SIGTERM.
    previous = {number: signal.signal(number, note) for number in watched if not _left_ignored(number)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _left_ignored(number: signal.Signals) -> bool:
    """Whether who started this process has it ignore a signal on purpose, as `nohup` does with SIGHUP.

    Not so SIGINT: every script has those ignore it that it starts with &.
    """
    return number != signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN


def _check_resources(experiment: Experiment) -> None:
    """Raises RequestError if what the cluster has can never hold all roles at once."""
    have = ray.cluster_resources()
    wanted: dict[str, float] = {}
    shares = [
        (experiment.resources.trainer, experiment.resources.hosts),
        (experiment.resources.evaler, len(experiment.eval)),
        (experiment.resources.decoder, len(experiment.decode)),
        (experiment.resources.store, 1),
    ]
    for role, count in shares:
        for name, amount in role.amounts.items():
            wanted[name] = wanted.get(name, 0.0) + amount * count
    for name, amount in wanted.items():
        if amount > have.get(name, 0.0):
            raise RequestError(
                f"resources: the roles ask for {amount:g} {name}, this machine has {have.get(name, 0.0):g}; "
                "lower resources.*, or join a cluster with --address"
            )
