"""A Trainer of several hosts: what one host dies of, or is told, and where a run goes on, with the same bits."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gates
import jax
import numpy as np
import pytest
import toy
from gangs import gang, on, wait_for_all
from running import Running, assert_same_end, gated, processes, steps_of
from undisturbed import undisturbed

from raylingvo.actors.run import RunFailed
from raylingvo.errors import RequestError
from raylingvo.experiment import Checkpoints, DevBased, Experiment
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.training import checkpoints
from raylingvo.training.state import init_state

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def state_of(experiment: Experiment, logdir: Path, step: int) -> Any:
    abstract = jax.eval_shape(lambda: init_state(experiment, toy.batches(1)[0]))
    return checkpoints.restore(logdir, step, abstract)[0]


@pytest.fixture(scope="module")
def whole(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logdir of an uninterrupted run of `gang()`."""
    logdir = tmp_path_factory.mktemp("whole")
    Running(gang(), logdir).result()
    return logdir


def test_several_hosts_learn_what_one_device_does(tmp_path: Path, whole: Path) -> None:
    alone = on(gang(), hosts=1, cpu_devices=1)
    undisturbed(alone, tmp_path)

    for a, b in zip(*(jax.tree.leaves(state_of(alone, logdir, 60)) for logdir in (tmp_path, whole)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert steps_of(whole, "eval_test") == [10, 20, 30, 40, 50, 60]
    for one, several in zip(*(read_metrics(logdir / "eval_test") for logdir in (tmp_path, whole)), strict=True):
        assert one["loss"] == pytest.approx(several["loss"], rel=1e-4)
    analysis = (whole / "control/model_analysis.txt").read_text().splitlines()
    assert any(line.startswith("hidden/kernel") and line.endswith("split along None, data") for line in analysis)
    assert "sharding" in (whole / "control/train_step.stablehlo.txt").read_text()


@pytest.mark.slow
def test_a_host_that_is_killed_takes_the_trainer_along_and_nothing_else(
    tmp_path: Path, whole: Path, new_gate: Callable[[str], gates.Gate]
) -> None:
    """Not the one that the others find each other by."""
    gate = new_gate("gate")
    running = Running(gated(gang(), "train", gate, at_call=35), tmp_path)
    hosts = wait_for_all(gate, running)
    running.view.wait_for(lambda status: status["store"]["held"])
    (gate.folder / "open").touch()
    os.kill(hosts[1], signal.SIGKILL)
    assert running.result()["status"] == "finished"

    assert any("the Trainer died on host 1 of 2; started again (1)" in event for event in running.view.events)
    (resumed,) = [event for event in running.view.events if "training goes on from step" in event]
    assert int(resumed.split()[-1]) in (20, 30)  # the newest snapshot in the store: there is no checkpoint
    assert running.result()["restarts"]["Trainer"] == 1
    assert_same_end(gang(), tmp_path, whole)
    assert steps_of(tmp_path, "eval_test") == [10, 20, 30, 40, 50, 60]


@pytest.mark.slow
def test_a_host_that_is_told_to_go_takes_all_to_a_checkpoint(
    tmp_path: Path, whole: Path, new_gate: Callable[[str], gates.Gate]
) -> None:
    gate = new_gate("gate")
    running = Running(gated(gang(max_restarts=0), "train", gate, at_call=35), tmp_path)
    hosts = wait_for_all(gate, running)
    os.kill(hosts[1], signal.SIGTERM)
    gate.open()
    gate.let_through()
    assert running.result()["status"] == "finished"

    assert any("told to go (SIGTERM), and has saved step" in event for event in running.view.events)
    result = running.result()
    assert (result["restarts"]["Trainer"], result["preemptions"]) == (0, 1)
    assert_same_end(gang(), tmp_path, whole)


def test_a_store_and_then_a_host_that_are_killed_cost_nobody_anything(
    tmp_path: Path, whole: Path, new_gate: Callable[[str], gates.Gate]
) -> None:
    gate = new_gate("gate")
    running = Running(gated(gang(), "train", gate, at_call=35), tmp_path)
    hosts = wait_for_all(gate, running)
    running.view.wait_for(lambda status: status["store"]["held"])
    (store,) = processes(kind="StoreActor")
    store.kill()
    running.view.wait_for_event("the SnapshotStore has its snapshots again")
    (gate.folder / "open").touch()
    os.kill(hosts[0], signal.SIGKILL)
    assert running.result()["status"] == "finished"

    assert any("the Trainer died on host 0 of 2; started again (1)" in event for event in running.view.events)
    (resumed,) = [event for event in running.view.events if "training goes on from step" in event]
    assert int(resumed.split()[-1]) in (20, 30)
    assert_same_end(gang(), tmp_path, whole)
    assert steps_of(tmp_path, "eval_test") == [10, 20, 30, 40, 50, 60]


def test_a_wrong_request_leaves_no_trace(tmp_path: Path) -> None:
    """That the batch cannot be split one of the hosts says first; the others are killed."""
    with pytest.raises(RequestError, match="a batch of 6 rows cannot be split evenly over 4 devices"):
        Running(gang(batch_size=6), tmp_path / "run").result()
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock"]


@pytest.mark.slow
def test_hosts_go_back_together_from_updates_that_are_not_finite(tmp_path: Path) -> None:
    diverging = gang(max_nonfinite_in_a_row=2, max_rollbacks=3, report_every_steps=5, max_steps=120)
    data = toy.Numbers(size=50, nan_ids=tuple(range(0, 50, 7)))
    diverging = dataclasses.replace(diverging, datasets={**diverging.datasets, "train": data})
    running = Running(diverging, tmp_path)
    with pytest.raises(RunFailed, match="updates in a row were not finite"):
        running.result()
    assert sum("rolled back to the weights of step" in event for event in running.view.events) == 3


@pytest.mark.slow
def test_a_rate_that_follows_evaluations_is_the_same_on_all_hosts(tmp_path: Path) -> None:
    follows = DevBased(metric="test/loss", window=1, decay=0.7, tolerance=100.0)
    running = Running(gang("latest", dev_based=follows, max_steps=400), tmp_path)
    assert running.result()["status"] == "finished"
    assert any("learning rate x 0.7 from step" in event for event in running.view.events)


@pytest.mark.slow
def test_a_run_goes_on_on_other_hosts_and_devices(tmp_path: Path, whole: Path) -> None:
    """Two hosts, one device, one host with four devices: each takes up exactly what the one before left."""
    steps = 0
    for experiment in (gang(), on(gang(), hosts=1, cpu_devices=1), on(gang(), hosts=1, cpu_devices=4)):
        steps += 20
        shorter = dataclasses.replace(experiment.train, max_steps=steps, checkpoints=Checkpoints(every_seconds=None))
        part = dataclasses.replace(experiment, train=shorter)
        config_file = tmp_path / "config.yaml"  # only the number of steps is another one
        if config_file.exists():
            longer = f"max_steps: {steps}\n"
            config_file.write_text(config_file.read_text().replace(f"max_steps: {steps - 20}\n", longer))
            assert longer in config_file.read_text()
        (tmp_path / "run.json").unlink(missing_ok=True)
        running = Running(part, tmp_path)
        assert running.result()["step"] == steps
        if steps > 20:
            assert f"training goes on from step {steps - 20}" in running.view.events
    for a, b in zip(*(jax.tree.leaves(state_of(gang(), logdir, 60)) for logdir in (tmp_path, whole)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
