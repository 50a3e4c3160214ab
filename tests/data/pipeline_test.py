"""Every example exactly once per epoch, whatever the batch size and wherever a run resumes; eval in order, padded."""

import itertools
import json
import math
import threading

import numpy as np
import pytest

from raylingvo.data.batches import OrderedBatches, ShuffledBatches
from raylingvo.data.pipeline import TrainInput, read_ahead
from raylingvo.errors import RequestError


class Range:
    """A source whose example i is i. Remembers how many examples were read."""

    def __init__(self, n):
        self.n = n
        self.num_read = 0

    def __len__(self):
        return self.n

    def take(self, indices):
        self.num_read += len(indices)
        return {"id": indices, "square": indices.astype(np.float32) ** 2}


@pytest.fixture
def make():
    """Makes TrainInputs that are closed at the end of the test."""
    made = []

    def make(n, batch_size, seed=0):
        made.append(TrainInput(ShuffledBatches(Range(n), batch_size, seed)))
        return made[-1]

    yield make
    for train_input in made:
        train_input.close()


def ids(train_input, num_batches):
    """i64[num_batches, batch_size]"""
    return np.stack([batch["id"] for batch in itertools.islice(train_input, num_batches)])


# Batches that divide the epoch, that span two, that are as large as one, and that span several.
SIZES = [(12, 4), (10, 3), (7, 7), (5, 13), (1, 3), (3, 1)]


@pytest.mark.parametrize(("n", "batch_size"), SIZES)
def test_every_example_exactly_once_per_epoch(make, n, batch_size):
    epochs = 4
    stream = ids(make(n, batch_size), math.ceil(epochs * n / batch_size)).ravel()
    for epoch in stream[: epochs * n].reshape(epochs, n):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))


def test_each_epoch_and_each_seed_has_its_own_order(make):
    epochs = [*ids(make(50, 50, seed=0), 3), *ids(make(50, 50, seed=1), 3)]
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert all((epoch != np.arange(50)).any() for epoch in epochs)


def test_the_batch_size_only_cuts_the_stream(make):
    streams = [ids(make(10, b, seed=5), 60 // b).ravel() for b in (1, 4, 30)]
    for stream in streams[1:]:
        np.testing.assert_array_equal(stream, streams[0])


def test_the_order_is_the_one_of_former_versions(make):
    # A checkpoint resumes in the middle of an epoch: a new order would repeat some examples and drop others.
    np.testing.assert_array_equal(ids(make(8, 8, seed=0), 2), [[0, 2, 1, 5, 4, 3, 6, 7], [5, 3, 7, 2, 4, 1, 0, 6]])
    np.testing.assert_array_equal(ids(make(8, 8, seed=2**64 - 1), 1), [[0, 7, 4, 2, 6, 3, 1, 5]])


def test_shuffles_are_uniform(make):
    # The 24 orders of 4 examples over 2,400 epochs: chi-square of 23 degrees of freedom exceeds 60 once in 28,000.
    orders, counts = np.unique(ids(make(4, 4), 2400), axis=0, return_counts=True)
    assert len(orders) == 24
    assert ((counts - 100) ** 2 / 100).sum() < 60


def test_fields_and_weight(make):
    batch = next(make(10, 4))
    assert set(batch) == {"id", "square", "weight"}
    np.testing.assert_array_equal(batch["square"], batch["id"].astype(np.float32) ** 2)
    np.testing.assert_array_equal(batch["weight"], np.ones(4))
    assert batch["weight"].dtype == np.float32


@pytest.mark.parametrize(("n", "batch_size"), SIZES)
def test_a_restored_input_goes_on_as_if_never_stopped(make, n, batch_size):
    for k in (0, 1, 2, 5, 11):
        whole = make(n, batch_size, seed=3)
        ids(whole, k) if k else None
        state = json.loads(json.dumps(whole.state()))
        resumed = make(n, batch_size, seed=3)
        next(resumed)  # it may have run before
        resumed.restore(state)
        assert resumed.state() == state
        np.testing.assert_array_equal(ids(resumed, 9), ids(whole, 9))


def test_the_state_counts_what_was_returned_not_what_was_read_ahead(make):
    states = []
    train_input = make(10, 4)
    for _ in range(3):
        states.append(train_input.state())
        next(train_input)
    batches = [ids(make_restored(make, state), 1) for state in states]
    np.testing.assert_array_equal(np.concatenate(batches), ids(make(10, 4), 3))


def make_restored(make, state):
    train_input = make(10, 4)
    train_input.restore(state)
    return train_input


def test_restore_far_away_reads_no_more_than_ahead(make):
    source = Range(10)
    train_input = TrainInput(ShuffledBatches(source, 4, 0))
    far = train_input.state()
    far["position"] = {"next_index": 10**15}
    train_input.restore(far)
    next(train_input)
    train_input.close()
    assert source.num_read <= 5 * 4  # the batch and the 4 ahead of it


@pytest.mark.parametrize("change", [{"n": 11}, {"batch_size": 5}, {"seed": 1}])
def test_a_state_of_another_stream_is_refused(make, change):
    state = make(10, 4, 0).state()
    with pytest.raises(RequestError, match=r"cannot resume the training input: \w+ was \d+, now it is \d+"):
        make(**{"n": 10, "batch_size": 4, "seed": 0, **change}).restore(state)


def test_close_ends_the_thread(make):
    before = set(threading.enumerate())
    train_input = make(10, 4)
    next(train_input)
    started = set(threading.enumerate()) - before
    assert started
    train_input.close()
    for thread in started:
        thread.join(timeout=30)
        assert not thread.is_alive()
    with pytest.raises(ValueError, match="closed"):
        next(train_input)
    train_input.restore(train_input.state())  # what to save is known even then


def test_an_error_of_the_source_reaches_the_reader():
    class Broken(Range):
        def take(self, indices):
            raise OSError("disk on fire")

    train_input = TrainInput(ShuffledBatches(Broken(10), 4, 0))
    with pytest.raises(OSError, match="disk on fire"):
        next(train_input)
    train_input.close()


@pytest.mark.parametrize(
    ("n", "batch_size", "seed", "message"),
    [
        (10, 0, 0, r"batch_size must be >= 1 \(got 0\)"),
        (0, 4, 0, "source must have at least one example"),
        (10, 4, -1, r"seed must be in \[0, 2\^64\) \(got -1\)"),
    ],
)
def test_bad_arguments_are_refused(n, batch_size, seed, message):
    with pytest.raises(ValueError, match=message):
        TrainInput(ShuffledBatches(Range(n), batch_size, seed))


@pytest.mark.parametrize("max_examples", [None, 1, 7, 10, 99])
@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 64])
def test_eval_sees_each_example_exactly_once_in_order(batch_size, max_examples):
    source = Range(10)
    batches = list(read_ahead(OrderedBatches(source, batch_size, max_examples)))
    assert all(len(values) == batch_size for batch in batches for values in batch.values())
    seen, weight = (np.concatenate([batch[field] for batch in batches]) for field in ("id", "weight"))
    expected = min(10, max_examples or 10)
    np.testing.assert_array_equal(seen[weight == 1], np.arange(expected))
    np.testing.assert_array_equal(seen[weight != 1], expected - 1)
    np.testing.assert_array_equal(weight, np.arange(len(weight)) < expected)
    assert weight.dtype == np.float32


def test_eval_of_nothing_is_nothing():
    assert list(read_ahead(OrderedBatches(Range(0), 4))) == []


def test_eval_refuses_bad_sizes():
    with pytest.raises(ValueError, match=r"batch_size must be >= 1 \(got 0\)"):
        OrderedBatches(Range(3), 0)
    with pytest.raises(ValueError, match=r"max_examples must be >= 1 \(got 0\)"):
        OrderedBatches(Range(3), 4, 0)
