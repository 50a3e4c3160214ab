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
from running import SECONDS, assert_same_end
from toy_run import experiment, read_until, started

from raylingvo.actors.run import noted_signals
from raylingvo.monitor.runs import load_run
from raylingvo.training import checkpoints

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    with started(experiment(), folder) as process:
        assert process.wait(SECONDS) == 0
    return folder


def test_sigterm_stops_cleanly_and_the_same_command_ends_as_if_nothing_had_been(tmp_path: Path, whole: Path) -> None:
    cut = tmp_path
    with contextlib.closing(gates.Gate(cut / "gate")) as gate:
        with started(experiment(cut / "gate"), cut) as process:
            gate.wait()
            os.killpg(process.pid, signal.SIGTERM)  # as `timeout` and batch systems do: to Ray's processes too
            read_until(process.stderr, "stopping: SIGTERM")
            gate.open()
            out, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 130
        result = json.loads(out.splitlines()[-1])
        assert (result["status"], result["stop_reason"]) == ("interrupted", "SIGTERM")
        assert 0 < result["step"] < 60
        assert checkpoints.steps(cut / "run") == [result["step"]]
        assert json.loads((cut / "run/run.json").read_text())["status"] == "interrupted"

        with started(experiment(cut / "gate"), cut) as process:
            out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert f"goes on from step {result['step']}" in err
    assert json.loads(out.splitlines()[-1])["step"] == 60

    assert_same_end(experiment(), cut / "run", whole / "run")


def test_a_second_ctrl_c_ends_everything_at_once(tmp_path: Path) -> None:
    with (
        contextlib.closing(gates.Gate(tmp_path / "gate")) as gate,
        started(experiment(gate.folder), tmp_path) as process,
    ):
        trainer = psutil.Process(gate.wait())
        process.send_signal(signal.SIGINT)
        read_until(process.stderr, "stopping: SIGINT")
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130  # the gate is still closed
        _, alive = psutil.wait_procs([trainer], timeout=SECONDS)
        assert not alive
    info = json.loads((tmp_path / "run/run.json").read_text())
    assert info["status"] == "interrupted"


def test_when_the_driver_is_killed_all_its_processes_end_and_the_same_command_ends_as_if_nothing_had_been(
    tmp_path: Path, whole: Path
) -> None:
    with contextlib.closing(gates.Gate(tmp_path / "gate")) as gate:
        with started(experiment(gate.folder), tmp_path) as process:
            trainer = psutil.Process(gate.wait())
            of_the_run = psutil.Process(process.pid).children(recursive=True)
            # These two try to tell Ray's head for a minute, before they end too.
            agents = [p for p in of_the_run if p.cmdline()[0] in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")]
            assert len(agents) == 2
            process.kill()
            process.wait(SECONDS)
            assert load_run(tmp_path / "run").info["status"] == "died"
            assert trainer in of_the_run
            _, alive = psutil.wait_procs(set(of_the_run) - set(agents), timeout=SECONDS)
            assert not alive
        gate.open()
        with started(experiment(gate.folder), tmp_path) as process:
            assert process.wait(SECONDS) == 0
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "finished"
    assert_same_end(experiment(), tmp_path / "run", whole / "run")


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
