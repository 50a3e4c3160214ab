"""A run as a process of its own: signals, exit statuses, its death, and going on afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import gates
import psutil
import pytest
import toy_run
from running import SECONDS, assert_same_end
from toy_run import read_until, started
from undisturbed import undisturbed

from raylingvo.actors.run import noted_signals
from raylingvo.experiment import Experiment, Snapshots
from raylingvo.monitor.runs import load_run
from raylingvo.training import checkpoints

pytestmark = pytest.mark.ray

STEPS = 3000  # so many that they are not over when the Trainer hears that it is to stop, after the gate is open


def experiment(gate: Path | None = None) -> Experiment:
    return toy_run.experiment(gate, max_steps=STEPS, report_every_steps=500, snapshots=Snapshots(every_steps=1000))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logdir of what a run comes to that nothing happened to."""
    return undisturbed(experiment(), tmp_path_factory.mktemp("whole"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["SIGTERM", "all"])
def test_however_it_ends_the_same_command_ends_as_if_nothing_had_been(
    tmp_path: Path, whole: Path, killed: bool
) -> None:
    """The same run again and again: each time but the last it is held in the middle, and ended there in another way."""
    with contextlib.closing(gates.Gate(tmp_path / "gate")) as gate:
        if killed:
            a_second_ctrl_c_ends_everything_at_once(tmp_path, gate)
            when_the_driver_is_killed_all_its_processes_end(tmp_path, gate)
        step = sigterm_stops_cleanly(tmp_path, gate)
        with started(experiment(gate.folder), tmp_path) as process:
            out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert f"goes on from step {step}" in err
    assert json.loads(out.splitlines()[-1])["step"] == STEPS
    assert load_run(tmp_path / "run").info["status"] == "finished"
    assert_same_end(experiment(), tmp_path / "run", whole)


def a_second_ctrl_c_ends_everything_at_once(folder: Path, gate: gates.Gate) -> None:
    with started(experiment(gate.folder), folder) as process:
        trainer = psutil.Process(gate.wait())
        process.send_signal(signal.SIGINT)
        read_until(process.stderr, "stopping: SIGINT")
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130  # the gate is still closed
        _, alive = psutil.wait_procs([trainer], timeout=SECONDS)
        assert not alive
    assert load_run(folder / "run").info["status"] == "interrupted"


def when_the_driver_is_killed_all_its_processes_end(folder: Path, gate: gates.Gate) -> None:
    with started(experiment(gate.folder), folder) as process:
        trainer = psutil.Process(gate.wait())
        of_the_run = psutil.Process(process.pid).children(recursive=True)
        # These two try to tell Ray's head for a minute, before they end too.
        agents = [p for p in of_the_run if p.cmdline()[0] in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")]
        assert len(agents) == 2
        process.kill()
        process.wait(SECONDS)
        assert load_run(folder / "run").info["status"] == "died"
        assert trainer in of_the_run
        _, alive = psutil.wait_procs(set(of_the_run) - set(agents), timeout=SECONDS)
        assert not alive


def sigterm_stops_cleanly(folder: Path, gate: gates.Gate) -> int:
    """The step of its checkpoint."""
    with started(experiment(gate.folder), folder) as process:
        gate.wait()
        os.killpg(process.pid, signal.SIGTERM)  # as `timeout` and batch systems do: to Ray's processes too
        read_until(process.stderr, "stopping: SIGTERM")
        gate.open()
        out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    result = json.loads(out.splitlines()[-1])
    assert (result["status"], result["stop_reason"]) == ("interrupted", "SIGTERM")
    assert 0 < result["step"] < STEPS
    assert checkpoints.steps(folder / "run") == [result["step"]]
    assert load_run(folder / "run").info["status"] == "interrupted"
    return result["step"]


def test_a_signal_that_is_ignored_does_not_stop_a_run() -> None:
    """As SIGHUP after `nohup`. But not SIGINT, which whatever a script starts with & ignores."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)}
    try:
        with noted_signals() as asked_to_stop:
            signal.raise_signal(signal.SIGHUP)
            assert asked_to_stop() is None
            signal.raise_signal(signal.SIGINT)
            assert asked_to_stop() == "SIGINT"
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
