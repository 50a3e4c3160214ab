"""Runs whose Trainer is of two hosts, with two devices each."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import gates
import psutil
import toy
from running import SECONDS, Running, only_eval

from raylingvo.experiment import Experiment
from raylingvo.parallel.mesh import Mesh

# Two hosts of two devices, over which batches are split, and what weights and slots can be.
SHARDED = Mesh(fsdp="data")


def on(experiment: Experiment, *, hosts: int = 2, cpu_devices: int = 2, mesh: Mesh = SHARDED) -> Experiment:
    trainer = dataclasses.replace(experiment.resources.trainer, num_cpus=0.5)
    resources = dataclasses.replace(
        experiment.resources, trainer=trainer, hosts=hosts, cpu_devices=cpu_devices, mesh=mesh
    )
    return dataclasses.replace(experiment, resources=resources)


def gang(policy: str = "every", **train: Any) -> Experiment:
    """60 steps, a snapshot every 10; averages, so that snapshots and states differ; 4 devices can split its width."""
    experiment = only_eval(policy, ema_decay=0.9, **train)
    return on(dataclasses.replace(experiment, task=toy.Regression(width=8)))


def host_of(pid: int) -> int:
    """Which host a process of the Trainer is: by the file that it would write if it crashed."""
    (crash,) = [Path(file.path).name for file in psutil.Process(pid).open_files() if file.path.endswith("_crash.txt")]
    return int(crash.removesuffix("_crash.txt").partition("-")[2] or 0)


def wait_for_all(gate: gates.Gate, running: Running) -> dict[int, int]:
    """Until both hosts stand before the gate: process by host."""
    entered: list[int] = []
    waiting = threading.Thread(target=lambda: entered.extend(gate.wait() for _ in range(2)), daemon=True)
    waiting.start()
    deadline = time.monotonic() + SECONDS
    while waiting.is_alive():
        waiting.join(1)
        assert not running.ended and time.monotonic() < deadline, (entered, running.view.events)
    return {host_of(pid): pid for pid in entered}
