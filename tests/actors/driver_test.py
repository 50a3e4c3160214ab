"""Runs whose driver is an actor, or is in a cluster that outlives it: followed, stopped, killed, gone on with."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gates
import psutil
import pytest
import ray
import toy
from command_line import Command, command_of
from running import SECONDS, Watcher, assert_same_end, processes
from toy_run import arguments, experiment, started
from undisturbed import undisturbed

from raylingvo.actors import detached
from raylingvo.actors.driver import NAMESPACE
from raylingvo.actors.logdir import Logdir
from raylingvo.errors import RequestError
from raylingvo.experiment import Experiment
from raylingvo.training.learner import Learner

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
NO_RUNS = "there are no runs in this cluster"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """command(*arguments): runs `raylingvo ARGUMENTS` in this process, which is connected to the cluster."""
    return command_of(monkeypatch, capsys)


@pytest.fixture(autouse=True)
def no_run_left(cluster: None) -> Iterator[None]:
    """Ends what a test that failed has left, so that the others do not fail of it."""
    yield
    for name in _drivers():
        ray.kill(ray.get_actor(name, namespace=NAMESPACE))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logdir of what a run comes to that nothing happened to."""
    return undisturbed(experiment(), tmp_path_factory.mktemp("whole"))


def _drivers() -> list[str]:
    named: Any = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in named if actor["namespace"] == NAMESPACE]


def _roles() -> list[psutil.Process]:
    """The processes of actors in this cluster."""
    kinds = ("TrainerActor", "StoreActor", "ReaderActor", "DriverActor")
    return [process for kind in kinds for process in processes(kind=kind)]


def _ended(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=SECONDS)[1]


def _as_if_started_by_ray_start(folder: Path) -> dict[str, str]:
    """The environment of a shell in which the cluster is that of this machine, and Ray's token that of the user."""
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text(ray.get_runtime_context().gcs_address)
    without = ("RAY_ADDRESS", "RAY_AUTH_MODE")  # ray.init has set the second for all that this process starts
    return {**{k: v for k, v in os.environ.items() if k not in without}, "RAY_TMPDIR": str(folder)}


class Following:
    """Somebody who is attached to a run."""

    def __init__(self, run: str) -> None:
        self.view = Watcher()
        self._ending = ThreadPoolExecutor(1).submit(self._attach, run)

    def _attach(self, run: str) -> Any:
        with detached.open_run(run, None) as found:
            return found.attach(self.view)

    def ending(self) -> Any:
        return self._ending.result(SECONDS)


def test_a_detached_run_outlives_its_command_and_leaves_nothing_in_the_cluster(
    command: Command, tmp_path: Path, new_gate: Callable[[str], gates.Gate], whole: Path
) -> None:
    gate = new_gate("gate")
    environment = _as_if_started_by_ray_start(tmp_path)
    with started(experiment(gate.folder), tmp_path, "--detach", environment=environment) as process:
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (0, "")
    (line,) = out.splitlines()
    assert json.loads(line).keys() == {"run", "experiment", "status", "logdir", "dashboard"}
    run = json.loads(line)["run"]
    info = json.loads((tmp_path / "run/run.json").read_text())
    assert (info["id"], info["status"], info["working_directory"]) == (run, "running", os.getcwd())  # noqa: PTH109
    assert info["command"][1] == "run"

    first, second = Following(run), Following(run[:-2])
    trainer = gate.wait()
    first.view.wait_for(lambda status: status["store"]["held"])
    (gate.folder / "open").touch()
    os.kill(trainer, signal.SIGKILL)  # a role can be started again without the command
    for following in (first, second):
        ending = following.ending()
        assert (ending.exit_status, ending.result["status"], ending.result["step"]) == (0, "finished", 60)
        assert any("the Trainer died; started again (1)" in event for event in following.view.events)
        assert following.view.statuses[-1]["trainer"]["state"] == "finished"
    assert_same_end(experiment(), tmp_path / "run", whole)
    assert _drivers() == []
    assert _ended(_roles())
    log = (tmp_path / "run/control/driver.log").read_text()
    assert f"run {run}: toy.Regression" in log
    assert f"(run {run}): finished at step 60 (reached max_steps 60)" in log

    assert command("status") == (0, f"{NO_RUNS}\n", "")
    assert command("status", tmp_path / "run", "--json").json == command("attach", tmp_path / "run", "--json").json
    assert command("stop", tmp_path / "run").out.startswith(f"toy.Regression (run {run}): finished at step 60")
    again = command(*arguments(experiment(gate.folder), tmp_path), "--detach")
    assert again.json["status"] == "finished"


def test_others_see_a_run_without_changing_it_or_stop_it_and_the_same_command_goes_on(
    command: Command, tmp_path: Path, new_gate: Callable[[str], gates.Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = new_gate("gate")
    wanted = arguments(experiment(gate.folder, max_steps=1_000_000), tmp_path)
    detach = (*wanted, "--detach")
    run = command(*detach).json["run"]
    following = Following(run)
    gate.wait()
    following.view.wait_for(lambda status: status["trainer"]["step"] > 0)

    (row,) = command("status", "--json").json["runs"]
    assert row.keys() >= {"loss", "steps_per_second", "restarts"}
    expected = {"run": run, "experiment": "toy.Regression", "state": "training", "max_steps": 1_000_000, "restarts": 0}
    assert row | expected | {"logdir": str(tmp_path / "run")} == row
    assert run in command("status").out
    shown = command("status", run[:12], "--json").json
    assert (shown["status"], shown["state"], shown["trainer"]["max_steps"]) == ("running", "training", 1_000_000)
    assert [reader["name"] for reader in shown["readers"]] == ["Evaler(test)"]
    assert "Evaler(test)" in command("status", tmp_path / "run").out

    in_use = f"raylingvo: --logdir {tmp_path}/run: another raylingvo process is running in it\n"
    assert command(*detach) == (2, "", in_use)
    assert command(*wanted) == (2, "", in_use)
    unknown = f"raylingvo: no run 'Regresion'; closest: {run}\n"
    assert command("attach", "Regresion") == (2, "", unknown)
    with monkeypatch.context() as patched:
        patched.setattr(detached, "_show", _interrupted(detached._show))
        detaches = f"raylingvo: the run goes on without you; to see it again: raylingvo attach {run}\n"
        assert command("attach", run) == (0, "", detaches)
    gate.open()
    stopped = command("stop", run, "--json")
    assert stopped.status == 0
    result = json.loads(stopped.out.splitlines()[-1])  # before it are what Ray tells the process that started the run
    assert (result["status"], result["stop_reason"]) == ("interrupted", "raylingvo stop")
    assert "stopping: raylingvo stop" in stopped.err
    assert following.ending().exit_status == command("attach", tmp_path / "run").status == 130
    unknown = f"raylingvo: no run {run!r}: {NO_RUNS}; of one that is over, give the logdir\n"
    assert command("status", run) == (2, "", unknown)

    assert command(*detach).json["run"] == run
    following = Following(run)
    following.view.wait_for_event(f"training goes on from step {result['step']}")
    assert command("stop", tmp_path / "run").status == 0
    assert following.ending().result["step"] >= result["step"]


def _interrupted(show: Callable[..., None]) -> Callable[..., None]:
    """What Ctrl-C does while one is attached; others that are see on."""
    here = threading.current_thread()

    def interrupt(*arguments: Any, **named: Any) -> None:
        if threading.current_thread() is here:
            raise KeyboardInterrupt
        show(*arguments, **named)

    return interrupt


def test_when_a_driver_is_killed_its_roles_end_and_the_same_command_goes_on(
    command: Command, tmp_path: Path, new_gate: Callable[[str], gates.Gate], whole: Path
) -> None:
    """A command that has joined the cluster, and a detached driver, of the same run."""
    gate = new_gate("gate")
    with started(experiment(gate.folder), tmp_path, "--address", ray.get_runtime_context().gcs_address) as process:
        gate.wait()
        roles = _roles()
        assert len(roles) >= 2
        process.kill()
        process.wait(SECONDS)
        assert _ended(roles)

    wanted = (*arguments(experiment(gate.folder), tmp_path), "--detach")
    run = command(*wanted).json["run"]
    following = Following(run)
    gate.wait()
    roles = _roles()
    assert len(roles) >= 3
    os.kill(json.loads((tmp_path / "run/run.json").read_text())["process"]["pid"], signal.SIGKILL)
    ending = following.ending()
    assert (ending.exit_status, ending.result["status"]) == (1, "died")
    assert ending.message == f"run {run} died; the same command goes on with it"
    assert _ended(roles)
    assert command("status", tmp_path / "run", "--json").json["status"] == "died"
    assert command("attach", tmp_path / "run").status == 1

    gate.open()
    assert command(*wanted).json["run"] == run
    assert command("attach", run).status == 0
    assert_same_end(experiment(), tmp_path / "run", whole)


def test_a_failed_run_tells_those_who_are_attached_and_its_log(command: Command, tmp_path: Path) -> None:
    broken = dataclasses.replace(experiment(max_steps=1), task=BrokenTraining())
    run = command(*arguments(broken, tmp_path), "--detach").json["run"]
    ended = command("attach", run)
    assert ended.status == 1
    assert f"(run {run}): failed at step 0" in ended.out
    assert "in loss" in ended.err
    message = "the Trainer failed: ZeroDivisionError: no such loss"
    assert ended.err.endswith(f"raylingvo: {message}\n")
    assert (tmp_path / "run/control/driver.log").read_text().endswith(f"{message}\n")
    assert command("attach", tmp_path / "run").err == f"raylingvo: {message}\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BrokenTraining(toy.Regression):
    def loss(self, model: Any, batch: Any, rng: Any) -> Any:
        raise ZeroDivisionError("no such loss")


def test_a_wrong_request_is_refused_as_without_detach(command: Command, tmp_path: Path, whole: Path) -> None:
    def refused(wanted: Experiment, logdir: Path) -> str:
        given = (*arguments(wanted, tmp_path)[:3], "--logdir", str(logdir))
        ended = command(*given, "--detach")
        assert ended == command(*given)
        assert (ended.status, ended.out) == (2, "")
        return ended.err

    assert "train.seed: 0 -> 1" in refused(experiment(seed=1), whole)
    plain = experiment()
    missing = dataclasses.replace(plain, datasets={**plain.datasets, "train": Missing()})
    assert refused(missing, tmp_path / "run") == "raylingvo: no such numbers\n"
    resources = dataclasses.replace(
        plain.resources, trainer=dataclasses.replace(plain.resources.trainer, num_cpus=100.0)
    )
    assert "ask for 100 CPU" in refused(dataclasses.replace(plain, resources=resources), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Missing(toy.Numbers):
    def check(self) -> None:
        raise RequestError("no such numbers")


def test_a_request_that_a_role_finds_wrong_leaves_room_for_a_right_one(command: Command, tmp_path: Path) -> None:
    wrong = dataclasses.replace(experiment(), learner=Learner(learning_rate=0.05, loss_name="x"))
    run = command(*arguments(wrong, tmp_path), "--detach").json["run"]
    ending = Following(run).ending()
    assert (ending.exit_status, ending.result) == (2, None)
    assert ending.message.startswith("learner.loss_name: the loss of Regression has no metric 'x'")
    assert ending.message in (tmp_path / "run/control/driver.log").read_text()
    Logdir(tmp_path / "run", experiment()).close()
