"""Any role may die, or fail, in the middle of a run: what is lost, what is repeated, and how it ends."""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gates
import numpy as np
import pytest
import toy
from running import Running, assert_same_end, gated, only_eval, processes, steps_of
from undisturbed import undisturbed

from raylingvo.experiment import Experiment, Snapshots
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.training import checkpoints

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logdir of what `only_eval("every")` comes to if nothing happens to it."""
    return undisturbed(only_eval("every"), tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
def test_an_evaler_that_fails_does_not_end_training_but_the_run_has_failed(tmp_path: Path) -> None:
    from raylingvo.actors.run import RunFailed

    experiment = dataclasses.replace(only_eval("latest"), task=BrokenEval())
    running = Running(experiment, tmp_path)
    with pytest.raises(RunFailed, match="no such metric") as failure:
        running.result()
    assert failure.value.result["step"] == 60
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "failed"
    assert checkpoints.steps(tmp_path)[-1] == 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class BrokenEval(toy.Regression):
    def eval_metrics(self, model: Any, batch: Any) -> dict[str, Any]:
        raise ZeroDivisionError("no such metric")


@pytest.mark.slow
def test_a_trainer_killed_in_the_middle_ends_as_if_it_had_not_been(
    tmp_path: Path, whole: Path, new_gate: Callable[[str], gates.Gate]
) -> None:
    gate = new_gate("gate")
    running = Running(gated(only_eval("latest"), "train", gate, at_call=35), tmp_path / "killed")
    victim = gate.wait()
    running.view.wait_for(lambda status: status["store"]["held"])
    (gate.folder / "open").touch()
    os.kill(victim, signal.SIGKILL)
    assert running.result()["status"] == "finished"

    assert any("the Trainer died; started again (1)" in event for event in running.view.events)
    (resumed,) = [event for event in running.view.events if "training goes on from step" in event]
    assert int(resumed.split()[-1]) in (20, 30)  # 29 to 34 batches had been consumed: the newest snapshot in the store
    assert_same_end(only_eval("every"), tmp_path / "killed", whole)


def test_a_trainer_that_is_told_to_go_saves_what_it_has(
    tmp_path: Path, whole: Path, new_gate: Callable[[str], gates.Gate]
) -> None:
    """By SIGTERM, as a machine that is taken away sends it; not a death."""
    gate = new_gate("gate")
    running = Running(gated(only_eval("latest", max_restarts=0), "train", gate, at_call=35), tmp_path / "preempted")
    victim = gate.wait()
    os.kill(victim, signal.SIGTERM)
    running.view.wait_for(lambda status: status["trainer"]["step"] >= 29)  # all that it can do without more data
    gate.open()
    assert running.result()["status"] == "finished"

    saved = next(event for event in running.view.events if "told to go (SIGTERM)" in event)
    step = int(saved.split("saved step ")[1].split(";")[0])
    assert 29 <= step < 60
    assert f"checkpoint {step} written" in running.view.events
    assert f"training goes on from step {step}" in running.view.events
    trainer, result = running.view.statuses[-1]["trainer"], running.result()
    assert (trainer["restarts"], trainer["preemptions"]) == (0, 1)
    assert (result["restarts"]["Trainer"], result["preemptions"]) == (0, 1)
    assert_same_end(only_eval("every"), tmp_path / "preempted", whole)


def test_a_store_killed_in_the_middle_costs_nobody_anything(
    tmp_path: Path, whole: Path, new_gate: Callable[[str], gates.Gate]
) -> None:
    eval_gate, train_gate = new_gate("eval"), new_gate("train")
    gated_run = gated(gated(only_eval("every"), "test", eval_gate), "train", train_gate, at_call=45)
    running = Running(gated_run, tmp_path / "killed")
    trainer = train_gate.wait()  # at step 39 to 44
    for _ in ("the batch from which it knows what to compile", "the first evaluation"):
        eval_gate.wait()
        eval_gate.let_through()
    eval_gate.wait()  # in the middle of the second; 30, and perhaps 40, wait in the store's memory
    (store,) = processes(kind="StoreActor")
    store.kill()
    running.view.wait_for_event("the SnapshotStore died; started again (1)")
    running.view.wait_for_event("the SnapshotStore has its snapshots again")  # from the Trainer's memory
    (train_gate.folder / "open").touch()
    os.kill(trainer, signal.SIGKILL)
    eval_gate.open()
    assert running.result()["status"] == "finished"

    (resumed,) = [event for event in running.view.events if "training goes on from step" in event]
    assert int(resumed.split()[-1]) in (30, 40)  # there is no checkpoint: the new store had that too
    assert (tmp_path / "killed/eval_test/metrics.jsonl").read_text().count("\n") == 6
    evaluated = [
        [(record["step"], record["loss"]) for record in read_metrics(name / "eval_test")]
        for name in (tmp_path / "killed", whole)
    ]
    assert evaluated[0] == evaluated[1]
    assert_same_end(only_eval("every"), tmp_path / "killed", whole)


def test_an_evaler_killed_in_the_middle_only_repeats_that_work_and_what_kills_it_twice_is_set_aside(
    tmp_path: Path, new_gate: Callable[[str], gates.Gate]
) -> None:
    gate = new_gate("gate")
    running = Running(gated(only_eval("every"), "test", gate), tmp_path / "run")
    for _ in range(2):
        gate.wait()  # the batch from which it knows what to compile
        gate.let_through()
        os.kill(gate.wait(), signal.SIGKILL)  # in its first evaluation
    for _ in ("the batch from which it knows what to compile", "the evaluation of the second snapshot"):
        gate.wait()
        gate.let_through()
    victim = gate.wait()  # in the middle of the third
    os.kill(victim, signal.SIGKILL)
    assert gate.wait() != victim
    gate.open()
    assert running.result()["status"] == "finished"

    assert any("Evaler(test) died; started again (1)" in event for event in running.view.events)
    running.view.wait_for_event("Evaler(test) died twice on the snapshot of step 10, which is set aside")
    assert (tmp_path / "run/eval_test/metrics.jsonl").read_text().count("\n") == 5
    assert steps_of(tmp_path / "run", "eval_test") == [20, 30, 40, 50, 60]
    assert running.result()["set_aside"] == {"Evaler(test)": [10]}
    assert running.view.statuses[-1]["readers"][0]["set_aside"] == 1


def test_an_error_that_passes_is_survived(tmp_path: Path, whole: Path) -> None:
    flag = tmp_path / "failed once"
    running = Running(failing(only_eval("latest"), at_call=35, flag=str(flag)), tmp_path / "failed")
    assert running.result()["status"] == "finished"

    assert flag.exists()
    assert any("the Trainer failed at step" in event and "the disk is away" in event for event in running.view.events)
    assert_same_end(only_eval("every"), tmp_path / "failed", whole)


def test_an_error_that_comes_again_at_the_same_step_ends_the_run_at_once(tmp_path: Path) -> None:
    from raylingvo.actors.run import RunFailed

    running = Running(failing(never_saved(), at_call=35), tmp_path)
    with pytest.raises(RunFailed, match=r"the Trainer failed at step \d+ again: OSError: the disk is away"):
        running.result()
    assert running.view.statuses[-1]["trainer"]["restarts"] == 1


def test_a_crash_says_where_it_was(tmp_path: Path) -> None:
    from raylingvo.actors.run import RunFailed

    running = Running(failing(never_saved(), at_call=35, crash=True), tmp_path)
    with pytest.raises(RunFailed, match=r"the Trainer died again: .*Segmentation fault \(.*trainer_crash\.txt\)"):
        running.result()
    assert "take" in (tmp_path / "control" / "trainer_crash.txt").read_text()


def never_saved() -> Experiment:
    """Each Trainer begins anew, and so comes to the same step with the same batch."""
    return only_eval("latest", max_restarts=100, snapshots=Snapshots(every_steps=1000))


def failing(experiment: Experiment, **how: Any) -> Experiment:
    data = FailingNumbers(size=experiment.datasets["train"].size, **how)  # type: ignore[attr-defined]
    return dataclasses.replace(experiment, datasets={**experiment.datasets, "train": data})


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailingNumbers(toy.Numbers):
    """Numbers that cannot be read from the `at_call`-th batch on that a process takes: once if there is a `flag`."""

    at_call: int
    flag: str = ""  # a file, which says that it has failed
    crash: bool = False

    def open(self) -> FailingRows:
        rows = super().open()
        return FailingRows(rows.x_Nx4, rows.y_N, self)


@dataclasses.dataclass(frozen=True, eq=False)
class FailingRows(toy.Rows):
    how: FailingNumbers
    calls: list[int] = dataclasses.field(default_factory=list)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        self.calls.append(1)
        how, flag = self.how, Path(self.how.flag)
        if len(self.calls) >= how.at_call and not (how.flag and flag.exists()):
            if how.crash:
                faulthandler._sigsegv()
            if how.flag:
                flag.touch()
            raise OSError("the disk is away")
        return super().take(indices)
