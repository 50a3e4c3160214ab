"""Sweeps of a toy on a real Ray: a trial is a run, what has ended is not run again, and what fails is on record."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gates
import psutil
import pytest
import toy
from running import SECONDS, Events, Running, assert_same_end, gated, own_ray, processes, steps_of
from undisturbed import undisturbed

import raylingvo as rl
from raylingvo import config
from raylingvo.errors import RequestError
from raylingvo.experiment import Experiment, Reading, Snapshots
from raylingvo.tune import record
from raylingvo.tune.board import Board
from raylingvo.tune.sweep import COMPILED, SweepFailed, SweepResult

pytestmark = pytest.mark.ray

RATE = "learner.learning_rate"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all tests; two trials fit into it."""
    with own_ray(num_cpus=2):
        yield


class Watcher(Events, Board):
    """A leaderboard whose events a test can wait on."""

    def update(self, sweep: record.Sweep, running: Any) -> None:
        pass


def experiment(**train: Any) -> Experiment:
    """12 steps, evaluated every 3."""
    return toy.experiment(reading=Reading(policy="every", batch_size=20), **train)


def sweep(logdir: Path, exp: Experiment | None = None, board: Board | None = None, **options: Any) -> SweepResult:
    options = {"space": {RATE: "choice(0.01, 0.05, 0.1)"}, "samples": 3} | options
    space = options.pop("space")
    return rl.sweep(
        exp or experiment(), space, logdir=logdir, metric="test/loss", mode="min", board=board or Watcher(), **options
    )


@pytest.fixture(scope="module")
def swept(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """Four trials, one at a time, of which two fail: all their data are NaN."""
    broken = ", ".join(map(str, range(50)))
    space = {RATE: "loguniform(0.01, 0.1)", "datasets.train.nan_ids": f"grid([], [{broken}])"}
    exp = experiment(max_nonfinite_in_a_row=2, max_rollbacks=0)
    return sweep(tmp_path_factory.mktemp("swept"), exp, space=space, samples=2, concurrency=1)


def logdir_of(result: SweepResult, number: int) -> Path:
    return result.logdir / "trials" / f"{number:04d}"


def test_a_trial_that_fails_is_on_record_and_the_others_go_on(swept: SweepResult) -> None:
    trials = swept.sweep.trials
    assert [trial.status for trial in trials] == ["finished", "failed", "finished", "failed"]
    assert [trial.step for trial in trials[::2]] == [12, 12]
    assert all("training diverges" in (trial.error or "") for trial in trials[1::2])
    assert swept.status == "finished"


def test_a_trial_is_a_run(swept: SweepResult, tmp_path: Path) -> None:
    """With all its files, and the very weights that a run of the same settings has."""
    there = logdir_of(swept, 0)
    assert json.loads((there / "run.json").read_text())["status"] == "finished"
    for name in ("config.yaml", "control/params.txt", "control/driver.log", "control/model_analysis.txt"):
        assert (there / name).stat().st_size
    alone = config.load((there / "config.yaml").read_text(), Experiment)
    Running(alone, tmp_path / "alone").result()
    assert_same_end(alone, there, tmp_path / "alone")
    assert steps_of(there, "eval_test") == [3, 6, 9, 12]
    assert [step for step, _ in swept.sweep.trials[0].history] == [3, 6, 9, 12]


def test_nobody_decodes_for_a_metric_of_the_evaluation(swept: SweepResult) -> None:
    assert not (logdir_of(swept, 0) / "decode_test").exists()


def test_one_process_works_on_one_trial_after_the_other(swept: SweepResult) -> None:
    drivers = [json.loads((logdir_of(swept, n) / "run.json").read_text())["process"]["pid"] for n in range(4)]
    assert len({*drivers}) == 1


def test_the_last_and_the_best_checkpoint_are_kept(swept: SweepResult) -> None:
    kept = [int(path.name) for path in (logdir_of(swept, 0) / "train/checkpoints").iterdir() if path.name.isdigit()]
    assert 1 <= len(kept) <= 2
    assert 12 in kept


def test_what_the_sweep_writes(swept: SweepResult) -> None:
    assert record.read(swept.logdir).to_json() == swept.sweep.to_json()
    with (swept.logdir / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished", "finished", "failed", "failed"]
    frame = swept.frame()
    assert list(frame["trial"]) == [int(row["trial"]) for row in rows]
    assert swept.best is not None
    assert float(frame["test/loss"].iloc[0]) == min(value for _, value in swept.best.history)
    for name in ("metric_by_step.png", "parallel_coordinates.png", "params.png", "report.html"):
        assert (swept.logdir / name).stat().st_size


def test_the_best_configuration_is_the_experiment_with_the_best_parameters(swept: SweepResult) -> None:
    best = config.load((swept.logdir / "best/config.yaml").read_text(), Experiment)
    assert swept.best is not None
    exp = experiment(max_nonfinite_in_a_row=2, max_rollbacks=0)
    assert best == config.override(exp, swept.best.params)


def test_the_same_again_runs_nothing(swept: SweepResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raylingvo.tune.sweep._fit", None)
    broken = ", ".join(map(str, range(50)))
    space = {RATE: "loguniform(0.01, 0.1)", "datasets.train.nan_ids": f"grid([], [{broken}])"}
    exp = experiment(max_nonfinite_in_a_row=2, max_rollbacks=0)
    again = sweep(swept.logdir, exp, space=space, samples=2, concurrency=1)
    assert again.sweep.to_json() == swept.sweep.to_json()


def test_another_sweep_is_refused_there(swept: SweepResult) -> None:
    with pytest.raises(RequestError, match=r"belongs to another sweep(.|\n)*params: .*choice\(0.01, 0.05, 0.1\)"):
        sweep(swept.logdir)


@pytest.mark.parametrize("at_once", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_after_ctrl_c_all_goes_on_where_it_was(
    cluster: None, tmp_path: Path, new_gate: Callable[[str], gates.Gate], at_once: int
) -> None:
    gate, board = new_gate("gate"), Watcher()
    options = {"samples": at_once + 1, "concurrency": at_once}
    # So many that they are not over when the trials hear of it, after the gate is open.
    exp = experiment(max_steps=3000, report_every_steps=1000, snapshots=Snapshots(every_steps=1000))
    exp = gated(exp, "train", gate, at_call=8)

    def interrupt() -> None:
        for _ in range(at_once):
            gate.wait()  # all trials that run are in the middle
        os.kill(os.getpid(), signal.SIGINT)
        board.wait_for_event("stopping: SIGINT")
        gate.open()
        for _ in range(at_once - 1):
            gate.let_through()

    thread = threading.Thread(target=interrupt)
    thread.start()
    first = sweep(tmp_path / "sweep", exp, board, **options)
    thread.join()
    assert first.status == "interrupted"
    begun = [trial for trial in first.sweep.trials if trial.status != "pending"]
    assert [trial.status for trial in begun] == ["interrupted"] * at_once
    steps = [trial.step for trial in begun]
    assert all(step < 3000 for step in steps)
    _, alive = psutil.wait_procs(processes(kind="TrainerActor"), SECONDS)
    assert not alive

    last = sweep(tmp_path / "sweep", exp, **options)
    assert [trial.status for trial in last.sweep.trials] == ["finished"] * (at_once + 1)
    for number, step in enumerate(steps):
        # A trial may have been interrupted before its first step: data are read ahead.
        assert (
            not step
            or f"training goes on from step {step}" in (logdir_of(last, number) / "control/driver.log").read_text()
        )
    alone = config.load((logdir_of(last, 0) / "config.yaml").read_text(), Experiment)
    assert_same_end(alone, logdir_of(last, 0), undisturbed(alone, tmp_path / "alone"))


@pytest.mark.slow
def test_more_samples_are_added_to_what_there_is(cluster: None, tmp_path: Path) -> None:
    first = sweep(tmp_path, samples=1)
    changed = (logdir_of(first, 0) / "run.json").stat().st_mtime_ns
    more = sweep(tmp_path, samples=2)
    assert [(trial.status, trial.error) for trial in more.sweep.trials] == [("finished", None)] * 2
    assert more.sweep.trials[0] == first.sweep.trials[0]
    assert (logdir_of(first, 0) / "run.json").stat().st_mtime_ns == changed


@pytest.mark.slow
def test_a_sweep_ends_when_too_many_trials_fail(cluster: None, tmp_path: Path) -> None:
    broken = ", ".join(map(str, range(50)))
    exp = experiment(max_nonfinite_in_a_row=2, max_rollbacks=0)
    space = {"datasets.train.nan_ids": f"grid([{broken}], [0, {broken}], [1, {broken}], [2, {broken}], [])"}
    with pytest.raises(SweepFailed, match="2 trials failed, the last of") as failed:
        sweep(tmp_path, exp, space=space, samples=1, max_failures=1, concurrency=1)
    assert [trial.status for trial in failed.value.result.sweep.trials].count("failed") == 2


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_goes_on_in_another(
    cluster: None, tmp_path: Path, new_gate: Callable[[str], gates.Gate]
) -> None:
    gate, board = new_gate("gate"), Watcher()
    exp = gated(dataclasses.replace(experiment(), decode={}), "train", gate, at_call=8)

    def kill() -> None:
        gate.wait()
        driver = json.loads((tmp_path / "sweep/trials/0000/run.json").read_text())["process"]["pid"]
        os.kill(driver, signal.SIGKILL)
        gate.open()
        board.wait_for_event("its process died")

    thread = threading.Thread(target=kill)
    thread.start()
    result = sweep(tmp_path / "sweep", exp, board, samples=1)
    thread.join()
    assert [trial.status for trial in result.sweep.trials] == ["finished"]
    assert [step for step, _ in result.sweep.trials[0].history] == [3, 6, 9, 12]


@pytest.mark.slow
def test_a_metric_that_no_decoder_gives_leaves_the_folder_to_another(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--metric: neither evaluation nor decoding has a metric 'squared'"):
        rl.sweep(experiment(), {RATE: "grid(0.05, 0.1)"}, logdir=tmp_path, metric="test/squared", mode="min")
    assert {path.name for path in tmp_path.iterdir()} <= {COMPILED, ".lock"}
    assert sweep(tmp_path).status == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
def test_schedulers_stop_trials_early(cluster: None, tmp_path: Path, scheduler: str) -> None:
    """Of six rates in ascending order the worst ones do not get all the steps."""
    exp = experiment(max_steps=600, snapshots=Snapshots(every_steps=20))
    rates = "choice(0.00001, 0.0001, 0.05, 0.1)"
    grace = {} if scheduler == "hyperband" else {"grace_steps": 40}
    result = sweep(tmp_path, exp, space={RATE: rates}, samples=8, scheduler=scheduler, **grace)
    statuses = [trial.status for trial in result.sweep.trials]
    assert {*statuses} <= {"finished", "stopped"}
    assert "stopped" in statuses
    assert result.best is not None
    assert result.best.params[RATE] >= 0.05


@pytest.mark.slow
def test_who_waits_at_a_rung_does_not_run_when_a_sweep_goes_on(cluster: None, tmp_path: Path) -> None:
    class Interrupter(Watcher):
        """Interrupts when two trials wait."""

        done = False

        def update(self, sweep: record.Sweep, running: Any) -> None:
            if not self.done and [trial.status for trial in sweep.trials].count("paused") == 2:
                self.done = True
                os.kill(os.getpid(), signal.SIGINT)

    exp = experiment(max_steps=600, snapshots=Snapshots(every_steps=20))
    how = {"space": {RATE: "grid(0.05, 0.0001, 0.00001, 0.1)"}, "samples": 1, "scheduler": "asha", "grace_steps": 40}
    first = sweep(tmp_path, exp, Interrupter(), **how)
    assert first.status == "interrupted"
    waiting = [trial for trial in first.sweep.trials if trial.status == "paused"]
    assert len(waiting) >= 2
    runs = {trial.number: (logdir_of(first, trial.number) / "run.json").read_bytes() for trial in waiting}

    last = sweep(tmp_path, exp, **how)
    assert last.status == "finished"
    assert sorted(trial.status for trial in last.sweep.trials) == ["finished", *["stopped"] * 3]
    went_on = [n for n, before in runs.items() if (logdir_of(last, n) / "run.json").read_bytes() != before]
    assert went_on == [trial.number for trial in waiting if last.sweep.trials[trial.number].step > trial.step]
    assert len(went_on) < len(waiting)
