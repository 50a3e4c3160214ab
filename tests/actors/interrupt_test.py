"""A run as a process of its own: signals, exit statuses, and going on afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gates
import jax
import psutil
import pytest
import toy

from raylingvo import config
from raylingvo.actors import memory
from raylingvo.experiment import Experiment, Reading, Snapshots
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.monitor.runs import load_run
from raylingvo.training import checkpoints
from raylingvo.training.state import init_state

pytestmark = pytest.mark.ray
SECONDS = 120

CLOCK = ("time", "steps_per_second", "examples_per_second", "input_wait_fraction", "snapshot_seconds")


def experiment(gate: Path | None = None) -> Experiment:
    """60 steps, in a process that keeps its memory; held at the 35th batch that is read if there is a gate."""
    plain = toy.experiment(
        data=toy.NumbersWhere(environment=memory.KEEP),
        max_steps=60,
        report_every_steps=7,
        snapshots=Snapshots(every_steps=10),
        reading=Reading(batch_size=20),
    )
    plain = dataclasses.replace(plain, decode={})
    if gate is None:
        return plain
    data = gates.GatedNumbers(gate=str(gate), at_call=35)
    return dataclasses.replace(plain, datasets={**plain.datasets, "train": data})


@contextlib.contextmanager
def started(wanted: Experiment, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """`raylingvo run` of an experiment in `folder`/run."""
    file = folder / "experiment.yaml"
    file.write_text(config.dump(wanted))
    command = [
        sys.executable,
        "-m",
        "raylingvo",
        "run",
        "--config",
        str(file),
        "--logdir",
        str(folder / "run"),
        "--json",
    ]
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(stream: Any, part: str) -> None:
    lines = []
    for line in stream:
        lines.append(line)
        if part in line:
            return
    pytest.fail(f"no line with {part!r} in {lines}")


def test_sigterm_stops_cleanly_and_the_same_command_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    with started(experiment(), whole) as process:
        assert process.wait(SECONDS) == 0

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

    abstract = jax.eval_shape(lambda: init_state(experiment(), toy.batches(1)[0]))
    states = [checkpoints.restore(folder / "run", 60, abstract) for folder in (whole, cut)]
    toy.assert_bit_equal(states[0][0], states[1][0])
    assert states[0][1]["input"] == states[1][1]["input"]
    reports = [
        [{k: v for k, v in record.items() if k not in CLOCK} for record in read_metrics(folder / "run/train")]
        for folder in (whole, cut)
    ]
    assert reports[0] == reports[1]


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


def test_when_the_driver_is_killed_its_roles_end_and_the_same_command_can_be_given_again(tmp_path: Path) -> None:
    with contextlib.closing(gates.Gate(tmp_path / "gate")) as gate:
        with started(experiment(gate.folder), tmp_path) as process:
            trainer = psutil.Process(gate.wait())
            process.kill()
            process.wait(SECONDS)
            assert load_run(tmp_path / "run").info["status"] == "died"
            gate.open()
            _, alive = psutil.wait_procs([trainer], timeout=SECONDS)
            assert not alive
        with started(experiment(gate.folder), tmp_path) as process:
            assert process.wait(SECONDS) == 0
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "finished"
