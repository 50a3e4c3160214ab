"""The Evaler's numbers are those of a direct computation over every example once."""

import dataclasses
import time

import jax
import numpy as np
import pytest
import sequence_task
import toy
from flax import nnx

from raylingvo.actors.evaler import Evaler
from raylingvo.actors.reader import Arrival
from raylingvo.errors import RequestError
from raylingvo.experiment import Best, Checkpoints, EarlyStop, Reading
from raylingvo.training.host_copy import encode
from raylingvo.training.state import Model

TASK = toy.Regression(dtype="bfloat16")
WEIGHTS = Model.split(TASK.init(nnx.Rngs(5)))


def evaluate(logdir, **reading):
    return evaluate_experiment(toy.experiment(task=TASK, reading=Reading(**reading)), logdir)


def evaluate_experiment(experiment, logdir):
    weights = Model.split(experiment.task.init(nnx.Rngs(5)))
    leaves = encode([np.array(x) for x in jax.tree.leaves(weights)])
    for x in leaves:
        x.flags.writeable = False  # as in the object store
    evaler = Evaler(experiment, "test", logdir)
    metrics = evaler.process(Arrival(1, time.time(), leaves))
    evaler.close()
    return metrics


def expected_loss(num_examples):
    batch = toy.Numbers(size=20).open().take(np.arange(num_examples))
    weights = jax.tree.map(lambda x: np.asarray(x, np.float64), WEIGHTS.params)
    hidden = np.tanh(batch["x"] @ weights["hidden"]["kernel"] + weights["hidden"]["bias"])
    y = hidden @ weights["out"]["kernel"] + weights["out"]["bias"]
    return np.mean((y[:, 0] - batch["y"]) ** 2)


# Batches that divide the 20 examples, that leave a rest, and that are larger than all of them.
@pytest.mark.parametrize("batch_size", [1, 5, 7, 20, 64])
def test_every_example_counts_once_and_padding_does_not(tmp_path, batch_size):
    metrics = evaluate(tmp_path, batch_size=batch_size)
    assert metrics["loss"] == pytest.approx(expected_loss(20), rel=1e-5)
    assert metrics["num_rows"] == 20
    seconds = metrics["lag_seconds"] - metrics["handover_seconds"]
    assert metrics["examples_per_second"] * seconds == pytest.approx(20, rel=0.05)


def test_only_so_many_examples(tmp_path):
    metrics = evaluate(tmp_path, batch_size=4, max_examples=10)
    assert metrics["loss"] == pytest.approx(expected_loss(10), rel=1e-5)
    assert metrics["num_rows"] == 10


def test_the_same_weights_give_the_same_bits(tmp_path):
    first, second = (evaluate(tmp_path / name, batch_size=7) for name in "ab")
    assert first["loss"] == second["loss"]


def test_sequences_give_the_same_metrics_in_whatever_batches(tmp_path):
    """Bucketed and packed alike, and however full the last batch of a bucket is."""
    results = []
    for batching in (
        {"bucket_bounds": (6, 12)},
        {"bucket_bounds": (6, 12), "bucket_batch_sizes": (5, 3)},
        {"packed_lengths": (12, 14)},
    ):
        data = sequence_task.Pairs(number=60, **batching)
        for batch_size in (1, 4, 7):
            experiment = sequence_task.experiment(data=data, reading=Reading(batch_size=batch_size))
            results.append(evaluate_experiment(experiment, tmp_path / str(len(results))))
    short = [lengths for lengths in data.open().length_NxC if max(lengths) <= 12]
    for metrics in results:
        assert metrics["loss"] == pytest.approx(results[0]["loss"], rel=1e-5)
        assert metrics["num_tokens"] == sum(target for _, target in short)
        assert metrics["num_too_long"] == 60 - len(short) > 0


@pytest.mark.parametrize(
    ("name", "hint"), [("num_row", r"did you mean num_rows\?"), ("accuracy", "the task gives loss, num_rows")]
)
def test_a_metric_that_the_task_does_not_give_is_refused(tmp_path, name, hint):
    best = Checkpoints(best=Best(metric=f"test/{name}", mode="max"))
    stop = EarlyStop(metric=f"test/{name}", mode="max", window=1)
    for field, train in (
        ("train.checkpoints.best.metric", {"checkpoints": best}),
        ("train.early_stop.metric", {"early_stop": stop}),
    ):
        experiment = dataclasses.replace(toy.experiment(task=TASK, **train), decode={})
        message = rf"{field}: the evaluation has no metric '{name}' \(got 'test/{name}'\); {hint}"
        with pytest.raises(RequestError, match=message):
            Evaler(experiment, "test", tmp_path)
        # What the Evaler of another dataset measures is not its business.
        other = dataclasses.replace(experiment, eval={**experiment.eval, "train": Reading()})
        Evaler(other, "train", tmp_path).close()


def test_a_metric_that_the_task_gives_may_steer_the_run(tmp_path):
    stop = EarlyStop(metric="test/loss", mode="min", window=1)
    Evaler(toy.experiment(task=TASK, early_stop=stop), "test", tmp_path).close()
