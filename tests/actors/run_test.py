"""Runs with real Ray actors on one machine: what a reader sees, and how a run ends."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import copy_task
import gates
import pytest
import toy
from running import Running, gated, only_eval, steps_of
from undisturbed import undisturbed

from raylingvo.actors import memory
from raylingvo.actors.logdir import Logdir
from raylingvo.errors import RequestError
from raylingvo.experiment import Best, Checkpoints, DevBased, EarlyStop, Experiment, Snapshots
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.training import checkpoints
from raylingvo.training.learner import Learner

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


BEST = Best(metric="test/range", mode="max")


def whole_experiment(**train: Any) -> Experiment:
    policy = Checkpoints(every_seconds=None, best=BEST)
    return toy.experiment(data=toy.NumbersWhere(environment=memory.KEEP), checkpoints=policy, **train)


@pytest.fixture(scope="module")
def finished(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The logdir of a run with all roles, and its result."""
    logdir = tmp_path_factory.mktemp("finished") / "run"
    return logdir, Running(whole_experiment(), logdir).result()


def test_a_run_leaves_everything_in_its_logdir(finished: tuple[Path, dict[str, Any]]) -> None:
    logdir, result = finished
    assert result["status"] == "finished"
    assert result["step"] == 12
    assert result["eval"]["test"]["step"] == result["decode"]["test"]["step"] == 12
    assert result["train"]["loss"] > 0
    assert result["first_step_seconds"] > 0
    info = json.loads((logdir / "run.json").read_text())
    assert info["stop_reason"] == "reached max_steps 12"
    assert info["ended"] >= info["started"]
    files = {str(path.relative_to(logdir)) for path in logdir.rglob("*")}
    assert files >= {
        "run.json",
        "config.yaml",
        "control/params.txt",
        "control/model_analysis.txt",
        "control/train_step.stablehlo.txt",
        "train/metrics.jsonl",
        "train/checkpoints/12",
        "eval_test/metrics.jsonl",
        "eval_test/score-00000012.txt",
        "decode_test/score-00000012.txt",
        "decode_test/decoder_out-00000012.jsonl",
        "decode_test/signatures.json",
    }
    assert checkpoints.resolve(logdir, "best", BEST) == [12]
    for folder in ("train", "eval_test", "decode_test"):
        assert any(name.startswith(f"{folder}/events.out.tfevents") for name in files)
    lines = (logdir / "decode_test/decoder_out-00000012.jsonl").read_text().splitlines()
    outputs = [json.loads(line) for line in lines]
    assert [output["id"] for output in outputs] == [str(i) for i in range(20)]


def test_a_finished_run_is_not_repeated(finished: tuple[Path, dict[str, Any]]) -> None:
    logdir, first = finished
    again = Running(whole_experiment(), logdir)
    assert again.result() == first
    assert not again.view.statuses


def test_another_experiment_is_refused_in_the_logdir(finished: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(RequestError, match=r"train\.seed: 0 -> 1"):
        Running(whole_experiment(seed=1), finished[0]).result()


def test_the_decoder_searches(tmp_path: Path) -> None:
    experiment = copy_task.experiment(batch_size=64, max_steps=300, snapshots=Snapshots(every_steps=300))
    result = Running(dataclasses.replace(experiment, eval={}), tmp_path).result()

    assert result["decode"]["test"]["accuracy"] > 0.95
    lines = (tmp_path / "decode_test/decoder_out-00000300.jsonl").read_text().splitlines()
    outputs = [json.loads(line) for line in lines]
    assert [output["id"] for output in outputs] == [str(i) for i in range(30)]
    # Of three hyps, each different, the best is the sentence.
    assert all(len({tuple(hyp) for hyp in output["hyps"]}) > 1 for output in outputs)
    assert sum(output["hyps"][0] == output["source"] for output in outputs) >= 29


@pytest.mark.slow
def test_two_runs_cannot_share_a_logdir(tmp_path: Path, new_gate: Callable[[str], gates.Gate]) -> None:
    gate = new_gate("gate")
    experiment = gated(only_eval("latest"), "train", gate, at_call=3)
    first = Running(experiment, tmp_path / "run")
    gate.wait()
    with pytest.raises(RequestError, match="another raylingvo process"):
        Running(experiment, tmp_path / "run").result()
    gate.open()
    assert first.result()["status"] == "finished"


@pytest.mark.parametrize(
    ("policy", "evaluated", "skipped"),
    [("latest", [10, 60], 4), pytest.param("last", [60], 0, marks=pytest.mark.slow)],
)
def test_training_never_waits_for_a_slow_evaler(
    tmp_path: Path, new_gate: Callable[[str], gates.Gate], policy: str, evaluated: list[int], skipped: int
) -> None:
    gate, train_gate = new_gate("eval"), new_gate("train")
    # The Trainer holds until the Evaler has its first snapshot. Of 16 batches at most 6 were taken to know their
    # shapes and read ahead, before the stream started again: it has made 10 to 16 steps.
    experiment = gated(gated(only_eval(policy), "test", gate), "train", train_gate, at_call=17)
    running = Running(experiment, tmp_path / "run")
    train_gate.wait()
    gate.wait()
    gate.let_through()  # the batch from which it knows what to compile
    if policy != "last":
        gate.wait()  # held in its first evaluation
    train_gate.open()
    running.view.wait_for(lambda status: status["trainer"]["state"] == "finished")
    assert steps_of(tmp_path / "run", "eval_test") == []
    gate.open()
    assert running.result()["status"] == "finished"

    assert steps_of(tmp_path / "run", "eval_test") == evaluated
    assert running.view.statuses[-1]["readers"][0]["skipped"] == skipped


def test_each_snapshot_is_evaluated_if_so_wanted_and_what_does_not_fit_the_store_waits_on_disk(
    tmp_path: Path, new_gate: Callable[[str], gates.Gate]
) -> None:
    gate = new_gate("gate")
    small = only_eval("every", snapshots=Snapshots(every_steps=10, max_count=2))
    running = Running(gated(small, "test", gate), tmp_path / "run")
    # A disk may be slower than the Trainer, which does not wait: what is too much moves out when it can. The Evaler
    # works on the first, and the newest stays.
    running.view.wait_for(lambda status: status["trainer"]["state"] == "finished" and status["store"]["on_disk"] == 4)
    assert running.view.statuses[-1]["store"]["held"] == 2
    assert steps_of(tmp_path / "run", "eval_test") == []
    gate.open()
    running.result()

    assert steps_of(tmp_path / "run", "eval_test") == [10, 20, 30, 40, 50, 60]
    assert running.view.statuses[-1]["readers"][0]["skipped"] == 0
    plain = undisturbed(only_eval("every"), tmp_path / "plain")
    losses = [[record["loss"] for record in read_metrics(at / "eval_test")] for at in (tmp_path / "run", plain)]
    assert losses[0] == losses[1]


def test_evaluations_lower_the_rate_and_end_the_run(tmp_path: Path, new_gate: Callable[[str], gates.Gate]) -> None:
    stop = EarlyStop(metric="test/loss", mode="max", window=40)  # the loss falls: it never improves
    decay = DevBased(metric="test/loss", mode="max", window=10)
    experiment = only_eval("every", max_steps=1_000_000, early_stop=stop, dev_based=decay)
    gate = new_gate("gate")
    # Held after 20 to 26 steps, until the two evaluations that halve the rate are there: later ones lower it further.
    running = Running(gated(experiment, "train", gate, at_call=27), tmp_path / "run")
    gate.wait()
    running.view.wait_for(lambda status: status["readers"][0]["step"] == 20)
    gate.open()
    result = running.result()
    assert any(event.startswith("learning rate x 0.5 from step ") for event in running.view.events)
    assert result["status"] == "finished"
    assert result["stop_reason"].startswith("early stop: test/loss has not improved")
    assert result["step"] < 1_000_000
    assert result["eval"]["test"]["step"] == result["step"]


@pytest.mark.slow
def test_the_best_checkpoint_is_kept(tmp_path: Path, new_gate: Callable[[str], gates.Gate]) -> None:
    """By a metric of the Decoder; in another test evaluations decide."""
    best = Best(metric="test/squared_error", mode="max")
    policy = Checkpoints(every_steps=10, every_seconds=None, keep_last=1, best=best)
    evaluated = only_eval("every", checkpoints=policy)
    gate = new_gate("gate")
    # The error falls, so the first one is the largest. Training goes on when it has been decoded.
    decoded = dataclasses.replace(evaluated, decode=evaluated.eval, eval={})
    running = Running(gated(decoded, "train", gate, at_call=17), tmp_path / "run")
    gate.wait()
    running.view.wait_for(lambda status: status["readers"][0]["step"] == 10)
    gate.open()
    running.result()
    assert checkpoints.steps(tmp_path / "run") == [10, 60]
    assert checkpoints.resolve(tmp_path / "run", "best", policy.best) == [10]


def test_a_request_for_more_than_the_machine_has_is_refused(tmp_path: Path) -> None:
    from raylingvo.config import override

    greedy = override(toy.experiment(), {"resources.trainer.num_gpus": 3.0})
    with pytest.raises(RequestError, match="3 GPU, this machine has 0"):
        Running(greedy, tmp_path).result()


def test_a_request_that_a_role_finds_wrong_leaves_room_for_a_right_one(tmp_path: Path) -> None:
    wrong = toy.experiment(learner=Learner(learning_rate=0.05, loss_name="x"))
    with pytest.raises(RequestError, match=r"^learner\.loss_name: the loss of Regression has no metric 'x'"):
        Running(wrong, tmp_path).result()
    Logdir(tmp_path, toy.experiment()).close()
