"""The book of a sweep: what it knows of trials is on disk, and only the same sweep goes on with a folder."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import toy

from raylingvo import config
from raylingvo.actors.logdir import read_experiment
from raylingvo.errors import RequestError
from raylingvo.experiment import Experiment
from raylingvo.tune import book as book_module
from raylingvo.tune import record
from raylingvo.tune.board import Board, RunningTrial
from raylingvo.tune.book import Book
from raylingvo.tune.request import Options, make_request
from raylingvo.tune.search import Listed

RATE = "learner.learning_rate"


class Noted(Board):
    """Keeps what it is to show."""

    def __init__(self):
        self.updates = []
        self.events = []

    def update(self, sweep, running):
        self.updates.append((sweep, dict(running)))

    def event(self, text):
        self.events.append(text)

    def close(self):
        pass


def request(params=None, *, experiment=None, metric="test/loss", mode="min", **options):
    params = params or {RATE: "loguniform(1e-4, 1e-1)", "task.width": "choice(2, 4)"}
    experiment = experiment or toy.experiment()
    return make_request(experiment, params, metric=metric, mode=mode, options=Options(**options))


def book_of(directory, made=None, *, total=3, board=None):
    return Book(made or request(), total, directory, board or Noted())


def opened(directory, made=None, **fields):
    book = book_of(directory, made, **fields)
    book.open()
    return book


def added(book, *trials):
    """Trials of these values at steps 3, 6, ..., finished."""
    for number, values in enumerate(trials):
        book.add(number, {RATE: 0.01 * (number + 1), "task.width": 2})
        for i, value in enumerate(values):
            book.value(number, 3 * (i + 1), value)
        book.update(number, status="finished")
    return book


# -- what it knows ----------------------------------------------------------------------------------------------------


def test_a_new_folder_gets_the_experiment_and_an_empty_record(tmp_path):
    made = request(max_steps=9, resources={"trainer.num_cpus": "0.5"})
    book = book_of(tmp_path, made)
    assert list(tmp_path.iterdir()) == []  # the request may yet prove wrong
    book.open()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "leaderboard.csv", "sweep.json"]
    assert read_experiment(tmp_path) == made.base
    read = record.read(tmp_path)
    assert read == book.sweep()
    assert (read.request, read.status, read.ended, read.trials) == (made.to_json(), "running", None, ())


def test_a_trial_is_added_once(tmp_path):
    book = opened(tmp_path)
    params = {RATE: 0.01}
    book.add(1, params)
    params[RATE] = 0.5
    book.update(1, status="running")
    book.add(1, {RATE: 0.3})
    assert book.trials[1] == record.Trial(number=1, params={RATE: 0.01}, status="running")


def test_an_update_changes_what_it_names(tmp_path):
    book = added(opened(tmp_path), [1.0])
    before = book.trials[0]
    after = book.update(0, seconds=2.5, stop_reason="patience")
    assert after is book.trials[0]
    assert after == record.Trial(**{**vars(before), "seconds": 2.5, "stop_reason": "patience"})
    with pytest.raises(ValueError, match="got 'done'"):
        book.update(0, status="done")
    with pytest.raises(KeyError):
        book.update(1, seconds=1.0)


def test_values_are_taken_note_of_once(tmp_path):
    book = opened(tmp_path)
    book.add(0, {RATE: 0.1})
    # A trial that goes on from a checkpoint may evaluate a step again.
    for step, value in [(3, 1.0), (6, 0.5), (3, 7.0), (6, 8.0), (9, 0.25)]:
        book.value(0, step, value)
    assert book.trials[0].history == ((3, 1.0), (6, 0.5), (9, 0.25))
    assert book.trials[0].step == 9


def test_an_evaluation_may_be_behind_the_training(tmp_path):
    book = opened(tmp_path)
    book.add(0, {RATE: 0.1})
    book.update(0, step=8)
    book.value(0, 6, 1.0)
    assert (book.trials[0].step, book.trials[0].last) == (8, (6, 1.0))


def test_trials_are_counted_by_status(tmp_path):
    book = added(opened(tmp_path), [1.0], [2.0], [3.0])
    book.update(1, status="failed", error="x")
    assert [book.count(status) for status in ("finished", "failed", "running")] == [2, 1, 0]


def test_the_sweep_has_the_trials_by_number(tmp_path):
    book = opened(tmp_path)
    for number in (2, 0, 1):
        book.add(number, {RATE: 0.1})
    assert [trial.number for trial in book.sweep().trials] == [0, 1, 2]


def test_a_sweep_fails_if_all_of_its_trials_do(tmp_path):
    book = opened(tmp_path)
    assert book.outcome() == ("finished", "all trials have ended")
    added(book, [1.0], [2.0], [])
    for number in (2, 0):
        book.update(number, status="failed", error=f"error {number}")
    assert book.outcome() == ("finished", "all trials have ended")
    book.update(1, status="failed", error="error 1")
    assert book.outcome() == ("failed", "all trials have failed, the last of: error 2")


def test_all_have_ended_when_nothing_is_left_to_be_done(tmp_path):
    book = opened(tmp_path)
    for status in ("pending", "running", "paused", "interrupted", "finished", "stopped", "failed"):
        added(book, [1.0], [2.0], [3.0])
        book.update(1, status=status)
        assert book.all_ended() == (status in ("finished", "stopped", "failed"))
    book = opened(tmp_path, total=4)
    assert len(added(book, [1.0], [2.0], [3.0]).trials) == 3
    assert not book.all_ended()


def test_trials_beyond_those_asked_for_do_not_stand_for_them(tmp_path):
    """With fewer samples than before."""
    book = added(opened(tmp_path, total=2), [1.0], [2.0], [3.0], [4.0])
    book.update(0, status="interrupted")
    assert not book.all_ended()
    book.update(0, status="finished")
    book.update(3, status="interrupted")
    assert book.all_ended()


# -- the board and the disk -------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """The monotonic time, to be set."""
    now = [100.0]
    monkeypatch.setattr(book_module.time, "monotonic", lambda: now[0])
    return now


def test_the_board_shows_each_change_and_the_disk_has_it_within_a_second(tmp_path, clock):
    board = Noted()
    book = opened(tmp_path, board=board)
    book.add(0, {RATE: 0.1})
    for i, on_disk in [(0.0, 0), (0.9, 0), (1.0, 1)]:
        clock[0] = 100.0 + i
        book.show()
        assert len(record.read(tmp_path).trials) == on_disk
    assert [len(sweep.trials) for sweep, _ in board.updates] == [1, 1, 1]
    book.add(1, {RATE: 0.1})
    clock[0] = 101.9
    book.show()
    assert len(record.read(tmp_path).trials) == 1


def test_the_board_hears_which_trials_run_and_what_happens(tmp_path):
    board = Noted()
    book = opened(tmp_path, request(max_steps=9), board=board)
    book.running(3, trial=3, step=5, steps_per_second=2.0, phase="training")
    book.running(4, trial=4, step=0, steps_per_second=None, phase="compiling")
    book.show()
    book.not_running(3)
    book.not_running(7)
    book.show()
    compiling = RunningTrial(step=0, max_steps=9, steps_per_second=None, phase="compiling")
    training = RunningTrial(step=5, max_steps=9, steps_per_second=2.0, phase="training")
    assert [running for _, running in board.updates] == [{3: training, 4: compiling}, {4: compiling}]
    book.event("trial 3: its process died")
    assert board.events == ["trial 3: its process died"]


def test_the_end_is_written_drawn_and_shown(tmp_path, monkeypatch):
    board = Noted()
    book = added(opened(tmp_path, board=board), [2.0, 1.0])
    monkeypatch.setattr(book_module.time, "time", lambda: 5e9)
    ended = book.close("interrupted", "Ctrl-C")
    assert (ended.status, ended.stop_reason, ended.ended) == ("interrupted", "Ctrl-C", 5e9)
    assert record.read(tmp_path) == ended == board.updates[-1][0]
    assert "toy.Regression" in (tmp_path / "report.html").read_text()


# -- the best ---------------------------------------------------------------------------------------------------------


def best(directory) -> Any:
    return config.load((directory / "best" / "config.yaml").read_text(), Experiment)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_trials_experiment_can_be_run(tmp_path, mode):
    made = request(mode=mode, max_steps=9)
    book = added(opened(tmp_path, made), [3.0, math.nan], [1.0, 4.0], [2.0])
    book.save()
    # With the checkpoints that the experiment keeps by itself.
    assert best(tmp_path) == config.override(made.base, {RATE: 0.02, "task.width": 2})
    assert best(tmp_path).train.checkpoints == toy.experiment().train.checkpoints


def test_there_is_a_best_as_soon_as_there_is_a_value(tmp_path):
    book = opened(tmp_path)
    book.add(0, {RATE: 0.01})
    book.add(1, {RATE: 0.02})
    book.value(0, 3, math.nan)
    book.save()
    assert not (tmp_path / "best").exists()
    news = [(1, 3, 5.0, 0.02), (0, 6, 4.0, 0.01), (1, 6, 4.5, 0.01), (1, 9, 3.0, 0.02)]
    for number, step, value, rate in news:
        book.value(number, step, value)
        book.save()
        assert best(tmp_path).learner.learning_rate == rate
    book.update(1, status="failed", error="x")
    book.save()
    assert best(tmp_path).learner.learning_rate == 0.01


def test_the_best_is_written_when_it_changes_alone(tmp_path):
    book = added(opened(tmp_path), [2.0], [3.0])
    book.save()
    file = tmp_path / "best" / "config.yaml"
    file.write_text("as it was")
    book.value(1, 6, 2.5)
    book.save()
    assert file.read_text() == "as it was"
    book.value(0, 6, 1.5)
    book.save()
    assert best(tmp_path).learner.learning_rate == 0.01


# -- going on ---------------------------------------------------------------------------------------------------------


def test_the_same_sweep_goes_on(tmp_path):
    book = added(opened(tmp_path), [2.0], [3.0, 1.0])
    book.update(0, status="failed", error="RuntimeError: no", seconds=1.5)
    ended = book.close("interrupted", "Ctrl-C")
    again = book_of(tmp_path)
    assert again.trials == book.trials
    assert again.sweep() == ended
    again.open()
    assert record.read(tmp_path) == record.Sweep(
        **{**vars(ended), "status": "running", "stop_reason": None, "ended": None}
    )


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 30},
        {"concurrency": 2},
        {"max_failures": 0},
        {"resources": {"trainer.num_cpus": "0.5", "evaler.num_cpus": "0.25"}},
    ],
)
def test_how_it_runs_and_how_many_trials_it_has_may_differ(tmp_path, options):
    added(opened(tmp_path), [2.0]).save()
    again = opened(tmp_path, request(**options))
    assert len(again.trials) == 1
    assert record.read(tmp_path).request == request(**options).to_json()
    assert read_experiment(tmp_path) == request(**options).base
    # And back again.
    assert len(book_of(tmp_path).trials) == 1


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({"metric": "test/mean"}, ["metric: test/loss -> test/mean"]),
        ({"mode": "max"}, ["mode: min -> max"]),
        ({"seed": 1}, ["seed: 0 -> 1"]),
        ({"scheduler": "asha", "reduction_factor": 2}, ["reduction_factor: 3 -> 2", "scheduler: fifo -> asha"]),
        ({"max_steps": 27}, ["max_steps: 12 -> 27", "train.max_steps: 12 -> 27"]),
        ({"scheduler": "asha", "grace_steps": 6}, ["grace_steps: 3 -> 6", "scheduler: fifo -> asha"]),
        (
            {"params": {RATE: "uniform(0.1, 1)"}},
            [
                "params: {'learner.learning_rate': 'loguniform(0.0001, 0.1)', 'task.width': 'choice(2, 4)'} -> "
                "{'learner.learning_rate': 'uniform(0.1, 1)'}"
            ],
        ),
        ({"experiment": toy.experiment(batch_size=4)}, ["train.batch_size: 8 -> 4"]),
        ({"experiment": toy.experiment(task=toy.Regression(width=9))}, ["task.width: 6 -> 9"]),
    ],
)
def test_another_sweep_is_refused_with_what_differs(tmp_path, fields, lines):
    added(opened(tmp_path), [2.0]).save()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(RequestError) as caught:
        book_of(tmp_path, request(**fields))
    head, *told = str(caught.value).splitlines()
    assert head == f"--logdir {tmp_path} belongs to another sweep; use another logdir, or undo:"
    assert sorted(told) == [f"  {line}" for line in lines]
    assert {path: path.read_bytes() for path in before} == before


def test_keys_of_grids_keep_their_order(tmp_path):
    """The order says which trial has which combination: in another, trials would go on with others' parameters."""
    one = {"task.width": "grid(2, 4)", "task.dropout": "grid(0.1, 0.2)"}
    other = dict(reversed(one.items()))
    listed = {
        first: Listed(request(params).space, search="random", samples=1, seed=0).params[1]
        for first, params in (("one", one), ("other", other))
    }
    assert listed["one"] != listed["other"]
    book = opened(tmp_path, request(one))
    book.add(1, listed["one"])
    book.save()
    with pytest.raises(RequestError, match="belongs to another sweep"):
        book_of(tmp_path, request(other))


@pytest.mark.parametrize("names", [["run.json"], ["run.json", "config.yaml"]])
def test_the_logdir_of_a_run_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(RequestError) as caught:
        book_of(tmp_path)
    assert str(caught.value) == f"--logdir {tmp_path} is the logdir of a run, not of a sweep"


def test_a_damaged_record_is_refused(tmp_path):
    added(opened(tmp_path), [2.0]).save()
    path = tmp_path / "sweep.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RequestError, match=r"sweep\.json is damaged"):
        book_of(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("", "is damaged: it is empty"), ("name: [", "not valid YAML")],
)
def test_a_damaged_experiment_is_refused(tmp_path, content, message):
    added(opened(tmp_path), [2.0]).save()
    path = tmp_path / "config.yaml"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(RequestError, match=message):
        book_of(tmp_path)


def test_a_sweep_that_dies_while_it_begins_can_be_started_again(tmp_path, monkeypatch):
    """Of the folder's first two files there may be only one."""

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(record, "write", die)
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert opened(tmp_path, request(max_steps=9)).trials == {}
    assert read_experiment(tmp_path) == request(max_steps=9).base


def test_the_record_of_an_older_version_says_what_it_lacks(tmp_path):
    opened(tmp_path)
    path = tmp_path / "sweep.json"
    value = json.loads(path.read_text())
    del value["request"]["reduction_factor"]
    path.write_text(json.dumps(value))
    with pytest.raises(RequestError, match="reduction_factor: None -> 3"):
        book_of(tmp_path)
