"""A cluster of two machines, of which one is lost: with the store, and with a host of the Trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gates
import pytest
import ray
from gangs import gang, wait_for_all
from ray.cluster_utils import Cluster
from running import Running, assert_same_end, gated, steps_of

from raylingvo.experiment import Checkpoints, Experiment, RoleResources

pytestmark = pytest.mark.ray

# Each has a resource of its own name, so that a role can be bound to one of them.
FIRST, SECOND = "first", "second"


@pytest.fixture(scope="module")
def machines() -> Iterator[Cluster]:
    """The first of two machines, which has the driver, and stays."""
    # Whether the dashboard's default port is free Ray (2.60) tries even for no dashboard, and if it is not, because of
    # another test's cluster, say, it leaves the socket open.
    node = {"num_cpus": 2, "resources": {FIRST: 10}, "include_dashboard": False, "dashboard_port": None}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def add_second(machines: Cluster) -> Any:
    return machines.add_node(num_cpus=2, resources={SECOND: 10}, wait=True)


@pytest.fixture
def second(machines: Cluster) -> Iterator[Any]:
    """The second machine."""
    added = add_second(machines)
    yield added
    for node in list(machines.worker_nodes):
        machines.remove_node(node)


@pytest.fixture(scope="module")
def whole(machines: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logdir of an uninterrupted run, both hosts of which are on the first machine: the same devices."""
    logdir = tmp_path_factory.mktemp("whole")
    Running(placed(gang(), trainer={FIRST: 1}), logdir).result()
    return logdir


def placed(
    experiment: Experiment,
    *,
    trainer: Mapping[str, float] | None = None,
    trainer_cpus: float = 0.0,
    store: Mapping[str, float] | None = None,
) -> Experiment:
    """Roles on machines that have these resources; readers on the first."""
    reader = RoleResources(custom={FIRST: 1})
    resources = dataclasses.replace(
        experiment.resources,
        trainer=RoleResources(num_cpus=trainer_cpus, custom=trainer or {}),
        store=RoleResources(custom=store or {FIRST: 1}),
        evaler=reader,
        decoder=reader,
    )
    return dataclasses.replace(experiment, resources=resources)


@pytest.mark.slow  # tests/cluster loses machines every time
def test_the_machine_that_has_the_store_is_lost(
    machines: Cluster, second: Any, tmp_path: Path, whole: Path, new_gate: Callable[[str], gates.Gate]
) -> None:
    gate = new_gate("gate")
    experiment = gated(placed(gang(), trainer={FIRST: 1}, store={SECOND: 1}), "train", gate, at_call=35)
    running = Running(experiment, tmp_path)
    wait_for_all(gate, running)
    running.view.wait_for(lambda status: status["store"]["held"])
    machines.remove_node(second, allow_graceful=False)
    add_second(machines)
    running.view.wait_for_event("the SnapshotStore has its snapshots again")
    gate.open()
    gate.let_through()
    assert running.result()["status"] == "finished"

    assert running.result()["restarts"]["Trainer"] == 0
    assert_same_end(gang(), tmp_path, whole)
    assert steps_of(tmp_path, "eval_test") == [10, 20, 30, 40, 50, 60]


@pytest.mark.slow
def test_the_machine_that_has_a_host_of_the_trainer_is_lost(
    machines: Cluster, second: Any, tmp_path: Path, whole: Path, new_gate: Callable[[str], gates.Gate]
) -> None:
    """One host on each machine, since neither has room for both."""
    gate = new_gate("gate")
    experiment = gated(placed(gang(), trainer_cpus=1.5), "train", gate, at_call=35)
    running = Running(experiment, tmp_path)
    wait_for_all(gate, running)
    running.view.wait_for(lambda status: status["store"]["held"])
    (gate.folder / "open").touch()
    machines.remove_node(second, allow_graceful=False)
    running.view.wait_for_event("the Trainer waits for machines: it asks the cluster for 2 x {CPU: 1.5}")
    add_second(machines)
    assert running.result()["status"] == "finished"

    (resumed,) = [event for event in running.view.events if "training goes on from step" in event]
    assert int(resumed.split()[-1]) in (20, 30)  # from the store: there is no checkpoint
    assert_same_end(gang(), tmp_path, whole)
    assert steps_of(tmp_path, "eval_test") == [10, 20, 30, 40, 50, 60]


@pytest.mark.slow
def test_the_machine_that_has_both_is_lost(
    machines: Cluster, second: Any, tmp_path: Path, whole: Path, new_gate: Callable[[str], gates.Gate]
) -> None:
    gate = new_gate("gate")
    saved = gang(checkpoints=Checkpoints(every_seconds=None, every_steps=15))
    experiment = gated(placed(saved, trainer={SECOND: 1}, store={SECOND: 1}), "train", gate, at_call=35)
    running = Running(experiment, tmp_path)
    wait_for_all(gate, running)
    (gate.folder / "open").touch()
    running.view.wait_for_event("checkpoint 15 written")
    machines.remove_node(second, allow_graceful=False)
    add_second(machines)
    assert running.result()["status"] == "finished"

    (resumed,) = [event for event in running.view.events if "training goes on from step" in event]
    assert int(resumed.split()[-1]) in (15, 30)  # a checkpoint
    assert_same_end(gang(), tmp_path, whole)
    evaluated = steps_of(tmp_path, "eval_test")
    assert evaluated == sorted(set(evaluated))  # none twice
    assert evaluated[-1] == 60
