"""Priorities: Ray's helpers step back; what is not Ray's, and what becomes a role, does not."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from raylingvo.actors import priorities


@pytest.fixture
def process():
    """Starts a process of a given command line that ends with the test."""
    started = []

    def start(title):
        # It says when it has begun: only then is its command the one that was asked for.
        script = "import sys, threading; threading.Thread(target=sys.stdin.read).start(); print(flush=True)"
        one = subprocess.Popen(
            [title, "-c", script], executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        started.append(one)
        one.stdout.readline()
        return one

    yield start
    for one in started:
        one.communicate()


def tasks(pid):
    return [path.name for path in Path(f"/proc/{pid}/task").iterdir()]


def niceness(pid):
    return {os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in tasks(pid)}


def test_all_threads_of_a_process(process):
    one = process("python")
    priorities.set_niceness(one.pid, 7)
    assert len(tasks(one.pid)) > 1
    assert niceness(one.pid) == {7}


def test_only_what_ray_runs_for_itself(process):
    helper, own = process("somewhere/ray/gcs/gcs_server"), process("my/array/server")
    before = niceness(own.pid)
    priorities.let_ray_step_back()
    assert niceness(helper.pid) == {priorities.RAY}
    assert niceness(own.pid) == before


@pytest.mark.ray
def test_the_names_are_those_of_this_ray(monkeypatch):
    step_back = ("gcs_server", "dashboard.py", "log_monitor.py", "DashboardAgent")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    ray.init(address="local", log_to_driver=False, logging_level=logging.ERROR, num_cpus=1)
    try:
        priorities.let_ray_step_back()
        worker = ray.get(ray.remote(lambda: os.nice(0)).remote(), timeout=60)
        found = {}
        for child in psutil.Process().children(recursive=True):
            command = " ".join(child.cmdline())
            for name in (*step_back, "raylet/raylet"):
                if name in command.split(" --")[0]:
                    found[name] = child.nice()
    finally:
        ray.shutdown()
    assert {name: found[name] for name in step_back} == dict.fromkeys(step_back, priorities.RAY)
    assert {worker, found["raylet/raylet"]} == {os.nice(0)}
