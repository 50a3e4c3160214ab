"""Checkpoints are evaluated and decoded without actors, and what is returned is what the logs say."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest
import toy
from damages import damage

from raylingvo.actors.logdir import Logdir
from raylingvo.actors.offline import read_checkpoints
from raylingvo.errors import RequestError
from raylingvo.experiment import Best, Checkpoints, Reading
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.training import checkpoints
from raylingvo.training.checkpoints import CheckpointWriter
from raylingvo.training.state import init_state

EXPERIMENT = toy.experiment()
STATE = jax.tree.map(np.asarray, init_state(EXPERIMENT, toy.batches(1)[0]))
DIVERGED = STATE._replace(weights=jax.tree.map(lambda x: np.full_like(x, np.nan), STATE.weights))

_OTHER = {"eval": "decode", "decode": "eval"}


@pytest.fixture
def logdir(tmp_path):
    """A run of two checkpoints, the last of which has diverged."""
    home = Logdir(tmp_path, EXPERIMENT)
    home.begin(["raylingvo"])
    home.update(id="Regression-1", status="failed")
    home.close()
    writer = CheckpointWriter(tmp_path, Checkpoints(), lambda line: None)
    for step, state in ((4, STATE), (8, DIVERGED)):
        writer.save(step, state, {}, on_saved=lambda: None)
    writer.close()
    return tmp_path


def test_it_returns_what_it_says(logdir):
    told = []
    result = read_checkpoints("eval", logdir, checkpoint="all", datasets=["test", "train"], progress=told.append)
    assert list(result) == ["run", "experiment", "logdir", "eval", "all"]
    assert (result["run"], result["experiment"], result["logdir"]) == ("Regression-1", "toy.Regression", str(logdir))
    assert {name: [r["step"] for r in records] for name, records in result["all"].items()} == {
        "test": [4, 8],
        "train": [4, 8],
    }
    assert result["eval"] == {name: records[-1] for name, records in result["all"].items()}
    assert told == ["eval test @ 4", "eval train @ 4", "eval test @ 8", "eval train @ 8"]


def test_it_returns_what_the_log_says_even_of_a_diverged_checkpoint(logdir):
    result = read_checkpoints("eval", logdir, checkpoint="all")
    json.dumps(result, allow_nan=False)  # as the command line does
    logged = [{k: v for k, v in record.items() if k != "time"} for record in read_metrics(logdir / "eval_test")]
    assert result["all"]["test"] == logged
    assert logged[0]["loss"] is not None
    assert logged[1]["loss"] is None


def test_it_decodes_too(logdir):
    result = read_checkpoints("decode", logdir, checkpoint="4")
    assert result["decode"]["test"]["num_outputs"] == 20
    assert (logdir / "decode_test" / "decoder_out-00000004.jsonl").read_text().count("\n") == 20
    assert result["signatures"] == {"test": {"range": "toy:1"}}


@pytest.mark.parametrize(("kind", "metric"), [("decode", "range"), ("eval", "loss")])
def test_other_datasets_than_that_of_the_best_checkpoint(tmp_path, kind, metric):
    best = Best(metric=f"test/{metric}", mode="max")
    experiment = toy.experiment(checkpoints=Checkpoints(best=best))
    home = Logdir(tmp_path, dataclasses.replace(experiment, **{kind: {"test": Reading()}, _OTHER[kind]: {}}))
    home.begin(["raylingvo"])
    home.close()
    with contextlib.closing(CheckpointWriter(tmp_path, Checkpoints(), lambda line: None)) as writer:
        writer.save(4, STATE, {}, on_saved=lambda: None)
    read_checkpoints(kind, tmp_path)
    result = read_checkpoints(kind, tmp_path, datasets=["train"], checkpoint="best")
    assert list(result[kind]) == ["train"]


@pytest.mark.parametrize("kind", ["eval", "decode"])
def test_averages_and_other_settings_leave_the_runs_own_results_alone(logdir, kind):
    read_checkpoints(kind, logdir, checkpoint="4")
    before = {path: path.read_bytes() for path in (logdir / f"{kind}_test").iterdir() if "events" not in path.name}
    with contextlib.closing(CheckpointWriter(logdir, Checkpoints(), lambda line: None)) as writer:
        writer.save(6, STATE, {}, on_saved=lambda: None)
    told = []
    how = {"checkpoint": "6", "average": 2, "overrides": {"task.dropout": "0"}}
    result = read_checkpoints(kind, logdir, **how, progress=told.append)
    assert told == [f"{kind} test @ 6 (average of 4, 6)"]
    folder = logdir / "variants" / "average-4+6,dropout=0"
    assert {key: result[key] for key in ("average", "set", "recorded_in")} == {
        "average": [4, 6],
        "set": {"task.dropout": "0"},
        "recorded_in": str(folder),
    }
    assert [record["step"] for record in read_metrics(folder / f"{kind}_test")] == [6]
    assert before == {path: path.read_bytes() for path in before}


def test_an_average_is_evaluated_as_its_mean(logdir):
    """Of weights w and 3 w: as a checkpoint of 2 w."""
    for step, factor in ((9, 1), (10, 3), (11, 2)):
        scaled = STATE._replace(weights=jax.tree.map(lambda x, factor=factor: factor * x, STATE.weights))
        with contextlib.closing(CheckpointWriter(logdir, Checkpoints(keep_last=9), lambda line: None)) as writer:
            writer.save(step, scaled, {}, on_saved=lambda: None)
    mean, same, once = (
        read_checkpoints("eval", logdir, checkpoint=step, average=n)["eval"]["test"]
        for step, n in (("10", 2), ("11", 1), ("10", 1))
    )
    assert mean["loss"] == same["loss"] != once["loss"]
    assert mean["step"] == 10


@pytest.mark.parametrize(("kind", "number"), [("eval", "scale"), ("decode", "mean")])
def test_a_checkpoint_is_of_the_task_that_the_run_had_by_then(tmp_path, kind, number):
    """Population based training changes it. What is asked for counts more, whatever it is a part of."""
    experiment = toy.experiment(task=toy.Scaled())
    home = Logdir(tmp_path, experiment)
    home.begin(["raylingvo"])
    home.close()
    first = {"step": 3, "params": {"task.scale": 9.0}, "origin": {}}
    second = {"step": 5, "params": {"task.scale": 2.0, "task.dropout": 0.1}, "origin": {}}
    with contextlib.closing(CheckpointWriter(tmp_path, Checkpoints(keep_last=9), lambda line: None)) as writer:
        for step, adopted in ((2, {}), (6, {"adopted": [first, second]})):
            writer.save(step, STATE, adopted, on_saved=lambda: None)

    def numbers(**how):
        return [record[number] for record in read_checkpoints(kind, tmp_path, **how)["all"]["test"]]

    before, after = numbers(checkpoint="all")
    assert after == pytest.approx(2 * before)
    assert numbers(average=2) == [after]
    assert numbers(overrides={"task.scale": "4"}) == pytest.approx([4 * before])
    assert numbers(overrides={"task.dropout": "0"}) == [after]


def test_a_logdir_without_run_json_has_no_id(logdir):
    """The command was killed at the very start: config.yaml comes first."""
    (logdir / "run.json").unlink()
    assert read_checkpoints("eval", logdir, checkpoint="4")["run"] is None


@pytest.mark.parametrize("kind", ["eval", "decode"])
def test_a_damaged_checkpoint_is_told_with_what_else_there_is_and_left_alone(logdir, kind):
    folder = logdir / checkpoints.DIRECTORY
    damage(folder / "8" / "state" / "_METADATA", "cut")
    before = sorted(folder.rglob("*"))
    for how in ({}, {"checkpoint": "8"}, {"checkpoint": "all"}, {"average": 2}):
        with pytest.raises(RequestError) as raised:
            read_checkpoints(kind, logdir, **how)
        text = str(raised.value)
        assert text.startswith(f"checkpoint {folder}/8 is damaged: state/_METADATA has ")
        assert text.endswith("; choose another: 4")
        assert "\n" not in text
    assert sorted(folder.rglob("*")) == before
    read_checkpoints(kind, logdir, checkpoint="4")


@pytest.mark.parametrize(
    ("file", "content"), [("run.json", b"{"), ("eval_test/metrics.jsonl", b'what\n{"step": 1, "time": 0.0}\n')]
)
def test_damage_is_told_in_one_line(logdir, file, content):
    (logdir / file).parent.mkdir(exist_ok=True)
    (logdir / file).write_bytes(content)
    with pytest.raises(RequestError, match=rf"{file}(?-s:.*)$"):
        read_checkpoints("eval", logdir)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"datasets": ["tset"]}, "no dataset 'tset' in toy.Regression; it has train, test"),
        ({"checkpoint": "5"}, "no checkpoint '5' in .*; it has 4, 8, latest, best, all"),
    ],
)
def test_what_does_not_exist_is_refused(logdir, arguments, message):
    with pytest.raises(RequestError, match=message):
        read_checkpoints("eval", logdir, **arguments)
