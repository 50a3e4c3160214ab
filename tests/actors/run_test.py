"""Runs with real Ray actors on one machine: what a reader sees, and what happens when something dies."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import copy_task
import gates
import jax
import pytest
import toy

from raylingvo.actors import memory
from raylingvo.errors import RequestError
from raylingvo.experiment import Best, Checkpoints, DevBased, EarlyStop, Experiment, Reading, Snapshots
from raylingvo.monitor.live import View
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.training import checkpoints
from raylingvo.training.learner import Learner
from raylingvo.training.state import init_state

pytestmark = pytest.mark.ray
SECONDS = 120  # nothing here takes so long unless it hangs


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One Ray for all tests of the module; every run starts its own actors in it."""
    import ray

    ray.init(address="local", num_cpus=4, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture
def new_gate(tmp_path: Path) -> Iterator[Callable[[str], gates.Gate]]:
    """new_gate(name): a gate that is closed until the test opens it."""
    with contextlib.ExitStack() as opened:
        yield lambda name: opened.enter_context(contextlib.closing(gates.Gate(tmp_path / name)))


class Watcher(View):
    """A view that a test can wait on."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.statuses: list[Any] = []
        self._changed = threading.Condition()

    def update(self, status: Any) -> None:
        with self._changed:
            self.statuses.append(status)
            self._changed.notify_all()

    def event(self, text: str) -> None:
        with self._changed:
            self.events.append(text)
            self._changed.notify_all()

    def close(self) -> None:
        pass

    def wait_for(self, condition: Callable[[Any], Any]) -> None:
        """Until `condition` holds for the newest status."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.statuses and condition(self.statuses[-1]), SECONDS)

    def wait_for_event(self, part: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: any(part in event for event in self.events), SECONDS), self.events


class Running:
    """A run in a thread."""

    def __init__(self, experiment: Experiment, logdir: Path) -> None:
        from raylingvo.actors.run import run

        self.view = Watcher()
        self._executor = ThreadPoolExecutor(1)
        self._future: Future[Any] = self._executor.submit(run, experiment, logdir, view=self.view)

    def result(self) -> dict[str, Any]:
        return self._future.result(SECONDS)


def gated(experiment: Experiment, dataset: str, gate: gates.Gate, at_call: int = 0) -> Experiment:
    data = gates.GatedNumbers(
        size=experiment.datasets[dataset].size,
        gate=str(gate.folder),
        at_call=at_call,  # type: ignore[attr-defined]
    )
    return dataclasses.replace(experiment, datasets={**experiment.datasets, dataset: data})


def only_eval(policy: str, **train: Any) -> Experiment:
    """60 steps, a snapshot every 10, one batch per evaluation."""
    train = {"max_steps": 60, "snapshots": Snapshots(every_steps=10)} | train
    reading = Reading(policy=policy, batch_size=20)  # type: ignore[arg-type]
    return dataclasses.replace(toy.experiment(reading=reading, **train), decode={})


def steps_of(logdir: Path, folder: str) -> list[int]:
    return [record["step"] for record in read_metrics(logdir / folder)]


def train_metrics(logdir: Path) -> list[dict[str, Any]]:
    """What was reported, without what depends on the clock."""
    clock = ("time", "steps_per_second", "examples_per_second", "input_wait_fraction", "snapshot_seconds")
    return [{k: v for k, v in record.items() if k not in clock} for record in read_metrics(logdir / "train")]


def assert_same_end(experiment: Experiment, logdir: Path, other: Path) -> None:
    abstract = jax.eval_shape(lambda: init_state(experiment, toy.batches(1)[0]))
    (state, position), (other_state, other_position) = (
        checkpoints.restore(path, checkpoints.steps(path)[-1], abstract) for path in (logdir, other)
    )
    toy.assert_bit_equal(state, other_state)
    assert position["input"] == other_position["input"]
    assert train_metrics(logdir) == train_metrics(other)


def test_a_run_leaves_everything_in_its_logdir(tmp_path: Path) -> None:
    policy = Checkpoints(every_seconds=None, best=Best(metric="test/range", mode="max"))
    experiment = toy.experiment(data=toy.NumbersWhere(environment=memory.KEEP), checkpoints=policy)
    result = Running(experiment, tmp_path / "run").result()

    assert result["status"] == "finished"
    assert result["step"] == 12
    assert result["eval"]["test"]["step"] == result["decode"]["test"]["step"] == 12
    assert result["train"]["loss"] > 0
    assert result["first_step_seconds"] > 0
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["stop_reason"] == "reached max_steps 12"
    assert info["ended"] >= info["started"]
    files = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*")}
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
    assert checkpoints.resolve(tmp_path / "run", "best", policy.best) == [12]
    for folder in ("train", "eval_test", "decode_test"):
        assert any(name.startswith(f"{folder}/events.out.tfevents") for name in files)
    lines = (tmp_path / "run/decode_test/decoder_out-00000012.jsonl").read_text().splitlines()
    outputs = [json.loads(line) for line in lines]
    assert [output["id"] for output in outputs] == [str(i) for i in range(20)]


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first = Running(toy.experiment(), tmp_path).result()
    again = Running(toy.experiment(), tmp_path)
    assert again.result() == first
    assert not again.view.statuses


def test_the_decoder_searches(tmp_path: Path) -> None:
    experiment = copy_task.experiment(batch_size=64, max_steps=300, snapshots=Snapshots(every_steps=300))
    result = Running(experiment, tmp_path).result()

    assert result["decode"]["test"]["accuracy"] > 0.95
    lines = (tmp_path / "decode_test/decoder_out-00000300.jsonl").read_text().splitlines()
    outputs = [json.loads(line) for line in lines]
    assert [output["id"] for output in outputs] == [str(i) for i in range(30)]
    # Of three hyps, each different, the best is the sentence.
    assert all(len({tuple(hyp) for hyp in output["hyps"]}) > 1 for output in outputs)
    assert sum(output["hyps"][0] == output["source"] for output in outputs) >= 29


def test_another_experiment_is_refused_in_the_logdir(tmp_path: Path) -> None:
    Running(toy.experiment(), tmp_path).result()
    with pytest.raises(RequestError, match=r"train\.seed: 0 -> 1"):
        Running(toy.experiment(seed=1), tmp_path).result()


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
    [("every", [10, 20, 30, 40, 50, 60], 0), ("latest", [10, 60], 4), ("last", [60], 0)],
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


def test_what_does_not_fit_the_store_waits_on_disk(tmp_path: Path, new_gate: Callable[[str], gates.Gate]) -> None:
    gate = new_gate("gate")
    plain = only_eval("every")
    small = only_eval("every", snapshots=Snapshots(every_steps=10, max_count=2))
    Running(plain, tmp_path / "plain").result()
    running = Running(gated(small, "test", gate), tmp_path / "small")
    running.view.wait_for(lambda status: status["trainer"]["state"] == "finished" and status["store"]["on_disk"] >= 2)
    held = [status["store"]["held"] for status in running.view.statuses]
    gate.open()
    running.result()

    assert max(held) <= 3  # one more for a moment, while it moves
    losses = [[record["loss"] for record in read_metrics(tmp_path / name / "eval_test")] for name in ("plain", "small")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_an_evaler_killed_in_the_middle_only_repeats_that_work(
    tmp_path: Path, new_gate: Callable[[str], gates.Gate]
) -> None:
    gate = new_gate("gate")
    running = Running(gated(only_eval("every"), "test", gate), tmp_path / "run")
    for _ in ("the batch from which it knows what to compile", "the first evaluation"):
        gate.wait()
        gate.let_through()
    victim = gate.wait()  # in the middle of the second
    os.kill(victim, signal.SIGKILL)
    assert gate.wait() != victim
    gate.open()
    assert running.result()["status"] == "finished"

    assert (tmp_path / "run/eval_test/metrics.jsonl").read_text().count("\n") == 6
    assert steps_of(tmp_path / "run", "eval_test") == [10, 20, 30, 40, 50, 60]
    assert any("Evaler(test) died; started again (1)" in event for event in running.view.events)


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


def test_a_trainer_killed_in_the_middle_ends_as_if_it_had_not_been(
    tmp_path: Path, new_gate: Callable[[str], gates.Gate]
) -> None:
    experiment = only_eval("latest")
    Running(experiment, tmp_path / "whole").result()
    gate = new_gate("gate")
    running = Running(gated(experiment, "train", gate, at_call=35), tmp_path / "killed")
    victim = gate.wait()
    running.view.wait_for(lambda status: status["store"]["held"])
    (gate.folder / "open").touch()
    os.kill(victim, signal.SIGKILL)
    assert running.result()["status"] == "finished"

    assert any("the Trainer died; started again (1)" in event for event in running.view.events)
    (resumed,) = [event for event in running.view.events if "training goes on from step" in event]
    assert int(resumed.split()[-1]) in (20, 30)  # 29 to 34 batches had been consumed: the newest snapshot in the store
    assert_same_end(experiment, tmp_path / "killed", tmp_path / "whole")


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
    for seed in (0, 1):
        experiment = toy.experiment(learner=Learner(learning_rate=0.05, loss_name="x"), seed=seed)
        with pytest.raises(RequestError, match=r"^learner\.loss_name: the loss of Regression has no metric 'x'"):
            Running(experiment, tmp_path).result()
