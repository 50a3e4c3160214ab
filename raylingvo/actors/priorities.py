"""Who goes first on one machine: training, then Evalers and Decoders, then what Ray runs for itself."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

READERS = 10  # niceness
RAY = 19
# Workers inherit the raylet's niceness and could not raise it again; the Trainer is to be one of them.
_LEFT_ALONE = ("raylet/raylet ", "default_worker.py", "ray::")
_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def let_ray_step_back() -> None:
    """Gives the processor to Ray's dashboard, agents and monitors only when nobody else wants it.

    For a Ray that this process has started: they are its children. Together they take 6 to 8 % of one core, a little at
    a time, and each time all threads of the train step wait for the one that was interrupted.
    """
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:  # it has ended meanwhile
            continue
        if command.startswith(_AGENTS) or not any(part in command for part in _LEFT_ALONE):
            set_niceness(process.pid, RAY)


def set_niceness(pid: int, niceness: int) -> None:
    """Of all threads of a process: on Linux each has its own, and gives it to those it starts."""
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        try:
            os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)
        except ProcessLookupError:  # it has ended meanwhile
            continue
