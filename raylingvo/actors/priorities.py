"""Who goes first on one machine: training, then Evalers and Decoders, then what Ray runs for itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

# Niceness, of the thread that computes and those that it starts. Ray's own threads in the process of a role stay at 0:
# a snapshot's way leads through them, and was a quarter longer when they stood back too.
READERS = 10
RAY = 19

# Parts of the commands of what ray.init starts beside the raylet, and the titles of what the raylet itself needs.
_HELPERS = ("/ray/gcs/gcs_server ", "/ray/dashboard/dashboard.py ", "/ray/autoscaler/", "/ray/_private/log_monitor.py ")
_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def let_ray_step_back() -> None:
    """Lets Ray's dashboard, agents, monitors and GCS have the processor where the others of this session leave gaps.

    For a Ray that this process has started. Together they take 6 to 8 % of one core, a little at a time, and each time
    all threads of the train step wait for the one that was interrupted.
    """
    for process in _helpers():
        set_niceness(process.pid, RAY)


def set_niceness(pid: int, niceness: int) -> None:
    """Of all threads of a process: on Linux each has its own, and gives it to those it starts."""
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        try:
            os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)
        except ProcessLookupError:  # it has ended meanwhile
            continue


def _helpers() -> Iterator[psutil.Process]:
    """Of the children of this process those that Ray runs for itself, with theirs."""
    for child in _children(psutil.Process()):
        command = _command(child)
        if "/ray/raylet/raylet " in command:
            # Not itself: workers inherit its niceness and could not raise it again, and one becomes the Trainer.
            yield from (process for process in _children(child) if _command(process).startswith(_AGENTS))
        elif any(part in command for part in _HELPERS):
            yield from (child, *_children(child, recursive=True))


def _children(process: psutil.Process, *, recursive: bool = False) -> list[psutil.Process]:
    try:
        return process.children(recursive=recursive)
    except psutil.NoSuchProcess:  # it has ended meanwhile
        return []


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) + " "
    except psutil.NoSuchProcess:
        return ""
