"""The Trainer without Ray: a run that was interrupted ends with the bits of one that was not."""

import contextlib
import dataclasses
import shutil
import threading
from unittest import mock

import jax
import numpy as np
import pytest
import sequence_task
import toy
from trainers import (
    EXPERIMENT,
    Killed,
    Store,
    abstract_state,
    assert_same_outcome,
    events,
    interrupt,
    kill,
    outcome,
    train,
    trainer_on,
)

from raylingvo.actors import trainer as trainer_module
from raylingvo.actors.trainer import TrainingFailed
from raylingvo.data.pipeline import TrainInput
from raylingvo.errors import RequestError
from raylingvo.experiment import Checkpoints, Snapshots, WarmStart
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.training import checkpoints
from raylingvo.training.host_copy import decode
from raylingvo.training.learner import Learner
from raylingvo.training.state import init_state
from raylingvo.training.step import make_train_step
from raylingvo.training.warm_start import resolved


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The logdir of an uninterrupted run of EXPERIMENT."""
    logdir = tmp_path_factory.mktemp("whole")
    train(EXPERIMENT, logdir)
    return logdir


# --- a run ---


def test_a_run_reports_publishes_and_saves(tmp_path):
    store = Store()
    trainer = trainer_on(EXPERIMENT, tmp_path, store)
    assert trainer.status()["state"] == "starting"
    result = trainer.run()
    assert result["step"] == 10
    assert result["steps_per_second"] > 0
    assert result["examples_per_second"] == pytest.approx(8 * result["steps_per_second"])
    reports = read_metrics(tmp_path / "train")
    assert [record["step"] for record in reports] == [4, 8, 10]
    assert [record["num_rows"] for record in reports] == [32, 32, 16]
    assert store.announced == [(3, True), (6, True), (9, True), (10, True)]
    assert checkpoints.steps(tmp_path) == [10]
    for name in ("model_analysis.txt", "train_step.stablehlo.txt"):
        assert (tmp_path / "control" / name).stat().st_size
    status = trainer.status()
    assert (status["state"], status["step"], status["max_steps"]) == ("finished", 10, 10)
    assert status["loss"] == reports[-1]["loss"]
    assert status["events"] == (0, ["checkpoint 10 written"])
    assert trainer.status(seen=1)["events"] == (1, [])


def test_snapshots_are_states_of_their_step(tmp_path):
    store = Store()
    train(EXPERIMENT, tmp_path, store)
    step = jax.jit(make_train_step(EXPERIMENT))
    state = init_state(EXPERIMENT, toy.batches(1)[0])
    data = EXPERIMENT.datasets["train"]
    train_input = TrainInput(data.train_batches(EXPERIMENT.train.batch_size, EXPERIMENT.train.seed))
    for k in range(1, 10):
        state, _ = step(state, next(train_input))
        if k in store.states:
            snapshot = store.states[k]
            toy.assert_bit_equal(decode(snapshot.weights, state.weights), jax.device_get(state.weights))
            assert snapshot.position["input"] == train_input.state()
            assert int(decode(snapshot.rest, state._replace(weights=None)).step) == k
    train_input.close()


def test_the_state_goes_with_every_kth_snapshot(tmp_path):
    store = Store()
    train(toy.experiment(snapshots=Snapshots(every_steps=2, state_every=3)), tmp_path, store)
    assert store.announced == [(2, True), (4, False), (6, False), (8, True), (10, False), (12, False)]
    assert checkpoints.steps(tmp_path) == [12]


def test_checkpoints_come_by_steps_and_at_the_end(tmp_path):
    store = Store()
    experiment = toy.experiment(max_steps=7, checkpoints=Checkpoints(every_seconds=None, every_steps=5))
    train(experiment, tmp_path, store)
    assert checkpoints.steps(tmp_path) == [5, 7]
    assert [step for step, _ in store.announced] == [3, 5, 6, 7]  # what is saved is published too


def test_checkpoints_come_by_seconds(tmp_path):
    train(toy.experiment(max_steps=2, checkpoints=Checkpoints(every_seconds=1e-9)), tmp_path)
    assert checkpoints.steps(tmp_path) == [1, 2]


def test_the_end_of_a_run_that_will_not_resume_is_reported(tmp_path):
    result = train(EXPERIMENT, tmp_path, after=6, do=lambda trainer: trainer.stop(resumable=False))
    assert result["step"] == 6
    assert [record["step"] for record in read_metrics(tmp_path / "train")] == [4, 6]
    assert checkpoints.steps(tmp_path) == [6]


@pytest.mark.parametrize("every_steps", [10, None], ids=["like the others", "at the end"])
def test_the_last_checkpoint_is_of_after_the_last_report_however_it_was_written(tmp_path, every_steps):
    policy = Checkpoints(every_steps=every_steps, every_seconds=None)
    experiment = toy.experiment(max_steps=10, report_every_steps=7, checkpoints=policy)
    train(experiment, tmp_path)
    abstract = jax.eval_shape(lambda: init_state(experiment, toy.batches(1)[0]))
    totals = checkpoints.restore(tmp_path, 10, abstract)[0].totals
    assert [total for total in jax.tree.leaves(totals) if np.any(total)] == []
    assert [record["step"] for record in read_metrics(tmp_path / "train")] == [7, 10]


def test_stop_before_the_first_step(tmp_path, whole):
    trainer = trainer_on(EXPERIMENT, tmp_path)
    interrupt(trainer)
    assert trainer.run() == {
        "step": 0,
        "steps_per_second": None,
        "examples_per_second": None,
        "resumes": True,
    }
    assert checkpoints.steps(tmp_path) == []
    train(EXPERIMENT, tmp_path)
    assert_same_outcome(EXPERIMENT, tmp_path, whole)


# --- interruptions ---


# On a report, on a snapshot, after the last batch; and several times, also right after the start and on neither.
@pytest.mark.parametrize("stops", [[4], [9], [10], [1, 4, 2]], ids=str)
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, whole, stops):
    step = 0
    for after in stops:
        step += after
        assert train(EXPERIMENT, tmp_path, after=after, do=interrupt)["step"] == step
        assert checkpoints.steps(tmp_path)[-1] == step
    trainer = trainer_on(EXPERIMENT, tmp_path)
    assert trainer.run()["step"] == 10
    assert f"training goes on from step {step}" in events(trainer)
    assert_same_outcome(EXPERIMENT, tmp_path, whole)


@pytest.mark.parametrize("after", [3, 5])
def test_a_killed_run_goes_on_from_the_store(tmp_path, whole, after):
    store = Store()
    with pytest.raises(Killed):
        train(EXPERIMENT, tmp_path, store, after=after + 1, do=kill)
    newest = after - after % 3
    assert checkpoints.steps(tmp_path) == []
    trainer = trainer_on(EXPERIMENT, tmp_path, store)
    trainer.run()
    assert events(trainer)[0] == f"training goes on from step {newest}"
    assert_same_outcome(EXPERIMENT, tmp_path, whole)


def test_a_checkpoint_that_is_newer_than_the_store_counts(tmp_path, whole):
    store = Store()
    train(EXPERIMENT, tmp_path, store, after=4, do=interrupt)
    assert sorted(store.states) == [3, 4]
    del store.states[4]
    trainer = trainer_on(EXPERIMENT, tmp_path, store)
    trainer.run()
    assert events(trainer)[0] == "training goes on from step 4"
    assert_same_outcome(EXPERIMENT, tmp_path, whole)


def test_a_state_in_the_store_that_is_newer_than_the_checkpoint_counts(tmp_path, whole):
    store = Store()
    train(EXPERIMENT, tmp_path, store, after=4, do=interrupt)
    with pytest.raises(Killed):
        train(EXPERIMENT, tmp_path, store, after=4, do=kill)
    assert checkpoints.steps(tmp_path) == [4]
    trainer = trainer_on(EXPERIMENT, tmp_path, store)
    trainer.run()
    assert events(trainer)[0] == "training goes on from step 6"
    assert_same_outcome(EXPERIMENT, tmp_path, whole)


def test_a_report_that_was_not_written_is_written_on_resuming(tmp_path, whole):
    store = Store()
    with pytest.raises(Killed):
        train(EXPERIMENT, tmp_path, store, after=7, do=kill)
    (tmp_path / "train" / "metrics.jsonl").unlink()  # as if the disk had been slower than the kill
    train(EXPERIMENT, tmp_path, store)
    assert_same_outcome(EXPERIMENT, tmp_path, whole)


def test_the_last_checkpoint_is_written_even_if_only_the_store_has_the_end(tmp_path, whole):
    store = Store()
    train(EXPERIMENT, tmp_path, store)
    shutil.rmtree(tmp_path / checkpoints.DIRECTORY)  # as if the Trainer had died before it
    train(EXPERIMENT, tmp_path, store)
    assert checkpoints.steps(tmp_path) == [10]
    assert_same_outcome(EXPERIMENT, tmp_path, whole)


def test_a_run_that_is_over_only_publishes_its_end_again(tmp_path, whole):
    """Its Evaler may have been interrupted before it had seen the end."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / checkpoints.DIRECTORY).rglob("*")}
    store = Store()
    train(EXPERIMENT, tmp_path, store)
    assert store.announced == [(10, True)]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / checkpoints.DIRECTORY).rglob("*")} == before
    assert_same_outcome(EXPERIMENT, tmp_path, whole)


# --- batches of several shapes ---


@pytest.mark.parametrize(
    ("data", "num_shapes"),
    [
        pytest.param(sequence_task.BUCKETED, 2, id="bucketed", marks=pytest.mark.slow),
        pytest.param(sequence_task.PACKED, 1, id="packed", marks=pytest.mark.slow),
        pytest.param(sequence_task.MIXED, 3, id="mixed"),
    ],
)
def test_an_interrupted_run_on_sequences_ends_with_the_same_bits(tmp_path, data, num_shapes):
    experiment = sequence_task.experiment(data=data, max_steps=10)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(experiment, whole)
    for after in (1, 4):
        train(experiment, parts, after=after, do=interrupt)
    assert checkpoints.steps(parts) == [1, 5]
    train(experiment, parts)
    assert_same_outcome(experiment, parts, whole)
    batches = data.train_batches(8, 0)
    assert len({str({name: x.shape for name, x in batches[k].items()}) for k in range(10)}) == num_shapes
    *_, last = read_metrics(whole / "train")
    assert last["num_too_long"] == batches.facts["num_too_long"] > 0
    assert ("packing_fill" in last) == (data is sequence_task.PACKED)


def test_all_shapes_are_compiled_before_the_first_step(tmp_path):
    data = sequence_task.BUCKETED
    experiment = sequence_task.experiment(data=data, max_steps=10)
    with contextlib.ExitStack() as later:

        def forbid(trainer):
            later.enter_context(mock.patch.object(jax.stages.Lowered, "compile", side_effect=AssertionError))

        assert train(experiment, tmp_path, after=1, do=forbid)["step"] == 10
    rows, positions = next(data.train_batches(8, 0).samples())["src_ids"].shape
    assert f"tensor<{rows}x{positions}xi32>" in (tmp_path / "control" / "train_step.stablehlo.txt").read_text()


# --- buffers ---


def test_buffers_stay_as_they_are_until_they_are_handed_over(tmp_path):
    store = Store(slow=True)
    experiment = toy.experiment(snapshots=Snapshots(every_steps=1))
    held = {}

    def take_notes(announcement):
        snapshot = store.trainer.outbox.get(announcement.step)
        held[announcement] = snapshot, [x.copy() for x in (*snapshot.weights, *snapshot.rest)]

    with mock.patch.object(store, "announce", take_notes):
        train(experiment, tmp_path, store)
    assert [announcement.step for announcement in held] == list(range(1, 13))
    assert store.trainer.outbox.announcements() == list(held)
    for snapshot, copies in held.values():
        toy.assert_bit_equal([*snapshot.weights, *snapshot.rest], copies)


def test_a_checkpoint_keeps_its_buffers_when_the_store_has_let_go(tmp_path):
    policy = Checkpoints(every_seconds=None, every_steps=5)
    experiment = toy.experiment(checkpoints=policy, snapshots=Snapshots(every_steps=1))
    store = Store()
    go_on = threading.Event()
    announce, write = store.announce, checkpoints.CheckpointWriter._write

    def take_notes(announcement):
        announce(announcement)
        if announcement.step == 8:
            go_on.set()

    def slow_write(*args):
        assert go_on.wait(60)
        write(*args)

    with (
        mock.patch.object(store, "announce", take_notes),
        mock.patch.object(checkpoints.CheckpointWriter, "_write", slow_write),
    ):
        train(experiment, tmp_path, store)
    state, _ = checkpoints.restore(tmp_path, 5, abstract_state(experiment))
    toy.assert_bit_equal(state.weights, decode(store.states[5].weights, state.weights))


# --- failures ---


def nan_at(*steps, **train_settings):
    """An experiment whose data are NaN in these steps."""
    data = toy.Numbers(size=200)
    train_input = TrainInput(data.train_batches(8, 0))
    ids = [next(train_input)["id"] for _ in range(12)]
    train_input.close()
    bad = toy.Numbers(size=200, nan_ids=tuple(int(ids[step - 1][0]) for step in steps))
    return toy.experiment(data=bad, max_nonfinite_in_a_row=2, **train_settings)


@pytest.mark.parametrize("streak", [(5, 6), (5, 6, 7)])
def test_a_streak_of_skipped_updates_rolls_back(tmp_path, streak):
    experiment = nan_at(*streak)
    store = Store()
    trainer = trainer_on(experiment, tmp_path, store)
    assert trainer.run()["step"] == 12
    status = trainer.status()
    assert (
        status["events"][1][0] == "2 updates in a row were not finite at step 7: rolled back to the weights of step 3"
    )
    assert (status["rollbacks"], status["skipped_updates"]) == (1, len(streak))
    assert dict(store.announced)[6] is False  # no state to go back to

    # From step 8 on: the weights and the optimizer of step 3, everything else as if nothing had happened.
    abstract = abstract_state(experiment)
    good = decode(store.states[3].rest, abstract._replace(weights=None))
    good = jax.tree.map(jax.numpy.array, good._replace(weights=decode(store.states[3].weights, abstract.weights)))
    train_input = TrainInput(experiment.datasets["train"].train_batches(8, 0))
    batches = [next(train_input) for _ in range(12)]
    train_input.close()
    step = jax.jit(make_train_step(experiment))
    state = good._replace(step=jax.numpy.int32(7))
    for batch in batches[7:]:
        state, _ = step(state, batch)
    final, _, reports = outcome(experiment, tmp_path)
    toy.assert_bit_equal((final.weights, final.opt_state), jax.device_get((state.weights, state.opt_state)))
    assert [record["num_skipped_updates"] for record in reports] == [0, len(streak), 0]


def test_single_skipped_updates_are_only_counted(tmp_path):
    trainer = trainer_on(nan_at(2, 4, 6), tmp_path)
    trainer.run()
    status = trainer.status()
    assert (status["rollbacks"], status["skipped_updates"]) == (0, 3)
    assert [record["num_skipped_updates"] for record in read_metrics(tmp_path / "train")] == [2, 1, 0]


def test_a_checkpoint_that_falls_due_in_a_streak_waits_for_a_good_step(tmp_path):
    """One would be the newest state, with the very weights that led into the streak."""
    store = Store()
    policy = Checkpoints(every_seconds=None, every_steps=5)
    trainer = trainer_on(nan_at(5, 6, checkpoints=policy, snapshots=Snapshots(every_steps=4)), tmp_path, store)
    trainer.run()
    assert "rolled back to the weights of step 4" in events(trainer)[0]
    assert [step for step, _ in store.announced] == [4, 7, 8, 12]
    assert checkpoints.steps(tmp_path) == [7, 12]


def test_without_a_state_to_go_back_to_it_starts_over_with_the_following_batches(tmp_path):
    trainer = trainer_on(nan_at(1, 2), tmp_path)
    trainer.run()
    assert "rolled back to the weights of step 0" in events(trainer)[0]
    healthy = tmp_path / "healthy"
    train(nan_at(), healthy)
    # Not one batch more or less than in any other run.
    assert outcome(nan_at(), tmp_path)[1] == outcome(nan_at(), healthy)[1]


def test_training_fails_after_so_many_rollbacks(tmp_path):
    experiment = nan_at(*range(4, 13), max_rollbacks=2)
    store = Store()
    trainer = trainer_on(experiment, tmp_path, store)
    with pytest.raises(TrainingFailed, match=r"2 updates in a row were not finite at step \d+, after 2 rollbacks"):
        trainer.run()
    assert len(events(trainer)) == 2


@pytest.mark.parametrize("policy", [Checkpoints(every_seconds=None, every_steps=2), Checkpoints(every_seconds=None)])
def test_a_checkpoint_that_cannot_be_written_fails_the_run(tmp_path, policy):
    (tmp_path / "train").mkdir()
    (tmp_path / checkpoints.DIRECTORY).write_text("in the way")
    trainer = trainer_on(toy.experiment(checkpoints=policy), tmp_path)
    with pytest.raises(OSError, match="checkpoints"):
        trainer.run()
    assert trainer.status()["state"] != "finished"


def test_an_error_of_the_data_fails_the_run(tmp_path):
    def fail(self, indices):
        raise OSError("disk on fire")

    with mock.patch.object(toy.Rows, "take", fail), pytest.raises(OSError, match="disk on fire"):
        trainer_on(EXPERIMENT, tmp_path).run()


# --- averages, and the weights of another run ---

AVERAGED = toy.experiment(task=toy.Regression(dropout=0.0), max_steps=7, ema_decay=0.9)


def test_what_is_published_and_saved_has_averages_in_the_place_of_weights(tmp_path):
    store = Store()
    train(AVERAGED, tmp_path, store)
    step = jax.jit(make_train_step(AVERAGED))
    state = init_state(AVERAGED, toy.batches(1)[0])
    train_input = TrainInput(AVERAGED.datasets["train"].train_batches(8, 0))
    for _ in range(7):
        state, _ = step(state, next(train_input))
        if int(state.step) == 3:
            state_3 = jax.device_get(state)
    train_input.close()
    snapshot = store.states[3]
    toy.assert_bit_equal(decode(snapshot.weights, state_3.weights), state_3.average)
    toy.assert_bit_equal(decode(snapshot.rest, state_3._replace(weights=None)).average, state_3.weights)
    saved = checkpoints.restore_weights(tmp_path, 7, state.weights)
    toy.assert_bit_equal(decode(saved, state.weights), jax.device_get(state.average))

    # From the checkpoint of step 4, and from the snapshot of step 3, it ends with the same bits.
    interrupted, killed, store = tmp_path / "interrupted", tmp_path / "killed", Store()
    train(AVERAGED, interrupted, after=5, do=interrupt)
    train(AVERAGED, interrupted)
    with contextlib.suppress(Killed):
        train(AVERAGED, killed, store, after=5, do=kill)
    train(AVERAGED, killed, store)
    for logdir in (interrupted, killed):
        assert_same_outcome(AVERAGED, logdir, tmp_path)


def test_a_run_starts_with_the_weights_of_another_but_goes_on_with_its_own(tmp_path, whole):
    source = tmp_path / "source"
    shutil.copytree(whole, source)
    warm = toy.experiment(
        max_steps=2, seed=5, learner=Learner(learning_rate=1e-30), warm_start=resolved(WarmStart(logdir=str(source)))
    )
    train(warm, tmp_path / "warm", after=2, do=interrupt)
    shutil.rmtree(source)
    train(warm, tmp_path / "warm")
    params, expected = (outcome(*run)[0].weights.params for run in ((warm, tmp_path / "warm"), (EXPERIMENT, whole)))
    toy.assert_bit_equal(params, expected)


def test_a_rollback_to_the_start_is_one_to_the_same_weights(tmp_path, whole):
    """Also if the other run has gone on meanwhile."""
    source = tmp_path / "source"
    shutil.copytree(whole, source)
    warm_start = resolved(WarmStart(logdir=str(source)))
    experiment = nan_at(1, 2, max_steps=4, warm_start=warm_start)
    experiment = dataclasses.replace(experiment, learner=Learner(learning_rate=1e-30))
    other = checkpoints.restore(whole, 10, abstract_state(EXPERIMENT))
    with contextlib.closing(checkpoints.CheckpointWriter(source, Checkpoints(), tell=lambda line: None)) as writer:
        zeros = jax.tree.map(lambda x: 0 * x, other[0])
        writer.save(11, zeros, {}, on_saved=lambda: None)
    trainer = trainer_on(experiment, tmp_path / "warm")
    trainer.run()
    assert any("rolled back to the weights of step 0" in event for event in events(trainer))
    toy.assert_bit_equal(outcome(experiment, tmp_path / "warm")[0].weights.params, other[0].weights.params)


def test_a_rollback_to_a_start_that_is_gone_is_no_wrong_request(tmp_path, whole):
    source = tmp_path / "source"
    shutil.copytree(whole, source)
    experiment = nan_at(1, 2, max_steps=4, warm_start=resolved(WarmStart(logdir=str(source))))
    with pytest.raises(TrainingFailed, match=r"not finite at step 3, and what to go back to .*no checkpoint in"):
        train(experiment, tmp_path / "warm", after=1, do=lambda trainer: shutil.rmtree(source))


def test_a_checkpoint_of_another_version_is_told_in_one_line(tmp_path):
    state = jax.device_get(init_state(EXPERIMENT, toy.batches(1)[0]))
    with contextlib.closing(checkpoints.CheckpointWriter(tmp_path, Checkpoints(), tell=lambda line: None)) as writer:
        writer.save(3, state, {"input": {}, "rollbacks": 0, "skipped_updates": 0}, on_saved=lambda: None)
    with pytest.raises(RequestError, match=r"^checkpoint 3 in .* was written by another version .*: it lacks reports$"):
        train(EXPERIMENT, tmp_path)


def test_a_warm_start_that_does_not_fit_is_told_before_the_step_is_compiled(tmp_path, whole):
    rules = (("out/bias", "hidden/bias"),)
    experiment = toy.experiment(warm_start=resolved(WarmStart(logdir=str(whole), rules=rules)))
    trainer = trainer_on(experiment, tmp_path)
    compiler = mock.patch.object(trainer_module, "TrainProgram", side_effect=AssertionError)
    with compiler, pytest.raises(RequestError, match="hidden/bias is of shape"):
        trainer.run()


def test_the_rate_is_scaled_from_the_next_step_on_and_stays_so(tmp_path):
    told = []

    def train_with(factor, *, after):
        def ask(trainer):
            if factor is not None:
                trainer.scale_rate(factor)
            trainer.stop(resumable=True)
            trainers.append(trainer)

        trainers = []
        train(EXPERIMENT, tmp_path, after=after, do=ask)
        told.append([event for event in events(trainers[0]) if "rate" in event])

    train_with(0.5, after=5)
    train_with(None, after=2)  # steps 6 and 7
    train_with(0.5, after=1)
    train_with(1, after=2)
    assert told == [["learning rate x 0.5 from step 5 on"], [], [], ["learning rate x 1 from step 10 on"]]
    assert float(outcome(EXPERIMENT, tmp_path)[0].learning_rate) == np.float32(0.05)
    rates = {record["step"]: record["learning_rate"] for record in read_metrics(tmp_path / "train")}
    assert rates == pytest.approx({4: 0.05, 8: 0.025, 10: 0.0375})
