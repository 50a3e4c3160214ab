"""What clusters/local.yaml starts on two hosts, used from a third: runs, ways to submit them, losses, and its end.

All of it, some minutes: python -m pytest -n 0 -m cluster tests/cluster
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cluster.hosts import SHARED, Bed, Host, missing
from cluster.launched import FILE, Launched
from gates import Gate
from running import assert_same_end, gated, only_eval, steps_of
from toy_run import read_until

from raylingvo import config
from raylingvo.experiment import Experiment, RoleResources

pytestmark = [pytest.mark.ray, pytest.mark.cluster]

EVALUATED = [10, 20, 30, 40, 50, 60]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Launched]:
    if reason := missing():
        pytest.skip(f"no hosts can be made here: {reason}")
    with Bed("laptop", "head", "other") as bed:
        launched = Launched(bed)
        launched.type(f"ray up -y {FILE}")
        yield launched


def on(host: Host) -> RoleResources:
    """For roles that are to be there: Ray names a resource after each host's address."""
    return RoleResources(custom={f"node:{host.address}": 0.001})


def experiment(cluster: Launched, *, trainer: Host | None = None) -> Experiment:
    """60 steps on the head, or `trainer`; a snapshot every 10, each of which the Evaler on the other host evaluates."""
    plain = only_eval("every")
    resources = dataclasses.replace(
        plain.resources, trainer=on(trainer or cluster.head), store=on(cluster.head), evaler=on(cluster.other)
    )
    return dataclasses.replace(plain, resources=resources)


def request(cluster: Launched, name: str, wanted: Experiment) -> str:
    """The arguments of a run with a logdir of this name."""
    (cluster.shared / f"{name}.yaml").write_text(config.dump(wanted))
    return f"run --config {SHARED / name}.yaml --logdir {SHARED / name}"


def result(logdir: Path) -> Mapping[str, Any]:
    info = json.loads((logdir / "run.json").read_text())
    assert info["status"] == "finished", info
    return info["result"]


def hosts_of(logdir: Path, folder: str) -> set[str]:
    """Where a role has been: TensorBoard's files have it in their names."""
    return {path.name.split(".")[4] for path in (logdir / folder).glob("events.out.tfevents.*")}


@pytest.fixture(scope="module")
def whole(cluster: Launched) -> Path:
    """The logdir of a run that nobody disturbs."""
    arguments = request(cluster, "whole", experiment(cluster))
    cluster.type(f"ray submit {FILE} clusters/run.py -- {arguments}")
    return cluster.shared / "whole"


@contextlib.contextmanager
def held(cluster: Launched, name: str, wanted: Experiment) -> Iterator[tuple[Any, Gate]]:
    """What a run, submitted, says; and the gate at which it stands now, at its 35th step."""
    (cluster.shared / f"{name}-gate").mkdir()
    with contextlib.closing(Gate(cluster.shared / f"{name}-gate/gate")) as gate:
        behind = gated(wanted, "train", gate, at_call=35)
        data = dataclasses.replace(behind.datasets["train"], gate=str(SHARED / f"{name}-gate/gate"))
        behind = dataclasses.replace(behind, datasets={**behind.datasets, "train": data})
        arguments = request(cluster, name, behind)
        with cluster.typed(f"raylingvo submit --cluster {FILE} -- {arguments}") as process:
            gate.wait()
            yield process, gate


def test_a_run_with_its_evaler_on_the_other_host(cluster: Launched, whole: Path) -> None:
    ended = result(whole)
    assert (ended["step"], ended["eval"]["test"]["step"]) == (60, 60)
    assert (hosts_of(whole, "train"), hosts_of(whole, "eval_test")) == ({"head"}, {"other"})
    assert steps_of(whole, "eval_test") == EVALUATED
    assert set(ended["restarts"].values()) == {0}


@pytest.mark.slow
def test_a_wrong_request_is_refused_there_as_here(cluster: Launched) -> None:
    refused = cluster.type(f"raylingvo submit --cluster {FILE} -- inspect config image.digits.Nothing", check=False)
    assert refused.returncode == 2
    assert "raylingvo: no experiment 'image.digits.Nothing'" in refused.stdout


def test_a_host_that_is_cut_off_and_comes_back(cluster: Launched, whole: Path) -> None:
    """The Evaler's. Ray has given it up by then."""
    with held(cluster, "cut", experiment(cluster)) as (process, gate):
        cluster.other.cut()
        read_until(process.stdout, "started again (1)")
        cluster.other.mend()
        gate.open()
        said = process.stdout.read()
        assert process.wait() == 0, said
    ended = result(cluster.shared / "cut")
    assert (ended["restarts"]["Trainer"], ended["restarts"]["SnapshotStore"]) == (0, 0)
    assert_as_if_nothing_had_been(cluster, "cut", whole)


@pytest.mark.slow
def test_a_submitted_run_ends_as_its_command_does(cluster: Launched) -> None:
    arguments = request(cluster, "submitted", experiment(cluster))
    done = cluster.type(f"raylingvo submit --cluster {FILE} --json -- {arguments}")
    answer = json.loads(done.stdout)
    assert (answer["status"], answer["exit_status"]) == ("finished", 0)
    assert hosts_of(cluster.shared / "submitted", "eval_test") == {"other"}


def assert_as_if_nothing_had_been(cluster: Launched, name: str, whole: Path) -> None:
    logdir = cluster.shared / name
    assert_same_end(experiment(cluster), logdir, whole)
    assert steps_of(logdir, "eval_test") == EVALUATED
    assert hosts_of(logdir, "eval_test") == {"other"}


@pytest.mark.slow
def test_the_evalers_host_is_killed(cluster: Launched, whole: Path) -> None:
    with held(cluster, "evaler", experiment(cluster)) as (process, gate):
        cluster.other.kill()
        gate.open()  # training does not care
        read_until(process.stdout, "started again (1)")
        cluster.other.start()
        said = process.stdout.read()
        assert process.wait() == 0, said
    assert result(cluster.shared / "evaler")["restarts"]["Trainer"] == 0
    assert_as_if_nothing_had_been(cluster, "evaler", whole)


@pytest.mark.slow
def test_the_trainers_host_is_killed(cluster: Launched, whole: Path) -> None:
    """The store is on the head, and has the state; the Evaler goes too."""
    with held(cluster, "trainer", experiment(cluster, trainer=cluster.other)) as (process, gate):
        (gate.folder / "open").touch()
        cluster.other.kill()
        read_until(process.stdout, "the Trainer died; started again (1)")
        cluster.other.start()
        said = process.stdout.read()
        assert process.wait() == 0, said
    assert "training goes on from step 30" in said or "training goes on from step 20" in said
    assert_as_if_nothing_had_been(cluster, "trainer", whole)
    assert hosts_of(cluster.shared / "trainer", "train") == {"other"}


@pytest.mark.slow
def test_rays_own_way_to_submit_a_job(cluster: Launched) -> None:
    """Through the port that `ray dashboard` forwards."""
    arguments = request(cluster, "job", experiment(cluster))
    forwarded = (
        f"ray dashboard {FILE} >/dev/null 2>&1 & trap 'kill $!' EXIT; "
        "until : >/dev/tcp/127.0.0.1/8265; do sleep 0.2; done 2>/dev/null; export RAY_AUTH_MODE=token; "
    )
    submit = "ray job submit --address http://127.0.0.1:8265 --working-dir clusters -- python run.py"
    cluster.type(f"{forwarded} {submit} {arguments}")
    assert hosts_of(cluster.shared / "job", "eval_test") == {"other"}
    assert result(cluster.shared / "job")["step"] == 60
    assert cluster.type(f"{forwarded} {submit} run nothing", check=False).returncode == 1


def test_ray_down_ends_it_everywhere(cluster: Launched) -> None:
    """The last test of this file: there is no cluster after it."""
    assert any("raylet" in line for line in cluster.other.processes())
    cluster.type(f"ray down -y {FILE}")
    assert cluster.head.processes() == []
    cluster.other.wait_until_idle()
