"""What Evalers and Decoders share: they follow a feed to its end, and leave a record of every snapshot."""

import contextlib
import time
import weakref
from unittest import mock

import jax
import numpy as np
import pytest
import sequence_task
import toy
from flax import nnx

import raylingvo as rl
from raylingvo.actors.decoder import Decoder
from raylingvo.actors.evaler import Evaler
from raylingvo.actors.reader import Arrival
from raylingvo.experiment import Reading
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.training.host_copy import encode
from raylingvo.training.state import Model

EXPERIMENT = toy.experiment(task=toy.Regression(dtype="bfloat16"))


def arrival(step, seed=0, task=EXPERIMENT.task):
    """Weights as they lie in the object store: encoded and read-only."""
    weights = Model.split(task.init(nnx.Rngs(seed)))
    leaves = encode([np.array(x) for x in jax.tree.leaves(weights)])
    for x in leaves:
        x.flags.writeable = False
    return Arrival(step, time.time() - 100, leaves)


class Feed:
    """Arrivals one after another; notes what was done, and what was on disk by then."""

    def __init__(self, reader, arrivals):
        self.reader = reader
        self.arrivals = list(arrivals)
        self.results = []

    def next(self):
        return self.arrivals.pop(0) if self.arrivals else None

    def done(self, step, metrics):
        assert read_metrics(self.reader.directory)[-1]["step"] == step
        assert (self.reader.directory / f"score-{step:08d}.txt").exists()
        self.results.append((step, metrics))


@pytest.fixture(params=[Evaler, Decoder], ids=["evaler", "decoder"])
def reader(request, tmp_path):
    reader = request.param(EXPERIMENT, "test", tmp_path)
    yield reader
    reader.close()


def test_it_follows_a_feed_to_its_end(reader):
    feed = Feed(reader, [arrival(10), arrival(20, seed=1), arrival(30)])
    reader.follow(feed)
    (first, a), (second, b), (third, c) = feed.results
    assert (first, second, third) == (10, 20, 30)
    times = {"handover_seconds", "lag_seconds", "examples_per_second"}
    a, b, c = ({name: value for name, value in m.items() if name not in times} for m in (a, b, c))
    assert a == c  # the same weights, the same numbers
    assert a != b
    records = [
        {k: v for k, v in r.items() if k not in {"step", "time", *times}} for r in read_metrics(reader.directory)
    ]
    assert records == [a, b, c]


def test_it_holds_no_weights_while_it_waits_for_the_next(reader):
    """They are pinned memory of the object store."""

    class Watching(Feed):
        def next(self):
            assert [ref() for ref in self.given] == [None] * len(self.given)
            arrival = super().next()
            self.given = [weakref.ref(x) for x in arrival.weights] if arrival else []
            return arrival

    feed = Watching(reader, [arrival(step) for step in range(10)])
    feed.given = []
    reader.follow(feed)
    assert [step for step, _ in feed.results] == list(range(10))


def test_it_compiles_once(reader):
    with mock.patch.object(jax.stages.Lowered, "compile", side_effect=AssertionError):  # it has compiled already
        reader.follow(Feed(reader, [arrival(10), arrival(20)]))


SCALED = toy.experiment(task=toy.Scaled())
NUMBER = {Evaler: "loss", Decoder: "mean"}


@pytest.mark.parametrize("role", [Evaler, Decoder])
def test_it_goes_by_the_settings_that_a_snapshot_comes_with(tmp_path, role):
    """Those that change are compiled for, those that do not concern it are not."""

    def scaled(step, **settings):
        return arrival(step, task=SCALED.task)._replace(settings=settings)

    twice = {"task.scale": 2.0, "learner.learning_rate": 0.5}
    arrivals = [scaled(3), scaled(6, **twice), scaled(9, **twice | {"learner.learning_rate": 0.7}), scaled(12)]
    compiled = []

    class Noting(Feed):
        def next(self):
            compiled.append(compile_step.call_count)
            return super().next()

    compile_step = mock.Mock(side_effect=jax.stages.Lowered.compile)
    with contextlib.closing(role(SCALED, "test", tmp_path / "one")) as reader:
        feed = Noting(reader, arrivals)
        with mock.patch.object(jax.stages.Lowered, "compile", lambda lowered: compile_step(lowered)):
            reader.follow(feed)
    assert compiled == [0, 0, 1, 1, 2]
    with contextlib.closing(role(rl.override(SCALED, twice), "test", tmp_path / "other")) as other:
        other.follow(Feed(other, [scaled(3)]))
    (_, before), (_, changed), (_, still), (_, back) = ((step, metrics[NUMBER[role]]) for step, metrics in feed.results)
    expected = read_metrics(other.directory)[0][NUMBER[role]]
    assert changed == still == expected != before
    assert back == before


@pytest.mark.parametrize("role", [Evaler, Decoder])
def test_it_compiles_for_every_shape_before_the_first_snapshot(tmp_path, role):
    experiment = sequence_task.experiment(data=sequence_task.MIXED, reading=Reading(batch_size=4))
    reader = role(experiment, "test", tmp_path)
    with mock.patch.object(jax.stages.Lowered, "compile", side_effect=AssertionError):
        reader.process(arrival(10, task=experiment.task))
    reader.close()


def test_times_are_counted_from_the_end_of_the_step(reader):
    metrics = reader.process(arrival(10))
    assert 100 <= metrics["handover_seconds"] <= metrics["lag_seconds"]
    assert metrics["examples_per_second"] > 0


def test_weights_of_another_model_are_refused(reader):
    wrong = arrival(10)
    with pytest.raises(ValueError, match=r"expected 5 arrays \(got 4\)"):
        reader.process(wrong._replace(weights=wrong.weights[:-1]))
    assert read_metrics(reader.directory) == []


def test_it_leaves_the_weights_as_they_are(reader):
    given = arrival(10)
    before = [x.copy() for x in given.weights]
    reader.process(given)
    toy.assert_bit_equal(given.weights, before)


def test_it_writes_where_its_kind_and_dataset_say(reader, tmp_path):
    reader.process(arrival(7))
    assert reader.directory == tmp_path / f"{reader.kind}_test"
    score = (reader.directory / "score-00000007.txt").read_text().splitlines()
    assert {line.partition(":")[0] for line in score} >= {"handover_seconds", "lag_seconds", "examples_per_second"}


def test_the_batch_size_of_training_is_the_default(tmp_path):
    experiment = toy.experiment(task=EXPERIMENT.task, reading=Reading())
    seen = []

    class Noting(toy.Rows):
        def take(self, indices):
            seen.append(len(indices))
            return super().take(indices)

    rows = experiment.datasets["test"].open()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy.Numbers, "open", lambda self: Noting(rows.x_Nx4, rows.y_N))
        evaler = Evaler(experiment, "test", tmp_path)
    evaler.process(arrival(1))
    evaler.close()
    assert set(seen) == {experiment.train.batch_size}
