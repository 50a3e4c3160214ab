"""The mean of the weights of checkpoints: exact, of the right ones, whatever their order."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from raylingvo.errors import RequestError
from raylingvo.experiment import Best
from raylingvo.experiment import Checkpoints as Policy
from raylingvo.monitor.metrics_log import MetricsLog
from raylingvo.training import checkpoint_average, checkpoints
from raylingvo.training.checkpoints import CheckpointWriter
from raylingvo.training.host_copy import decode

BEST = Best(metric="test/accuracy", mode="max")


def weights(step):
    """Of every kind of dtype; a mean of eighths is exact."""
    random = np.random.default_rng(step)
    return {
        "params": {
            "w": random.integers(-64, 64, (3, 2)).astype(np.float32) / 8,
            "half": random.integers(-4, 4, 5).astype(jnp.bfloat16),
        },
        "extra": {"count": np.array(step, np.int32)},
    }


@pytest.fixture
def logdir(tmp_path):
    """Checkpoints 1, 2, 3 and 4, of which 4 has no score; 2 is the best, then 1."""
    writer = CheckpointWriter(tmp_path, Policy(keep_last=9), lambda line: None)
    for step in range(1, 5):
        writer.save(step, {"weights": weights(step), "step": np.array(step)}, {}, on_saved=lambda: None)
    writer.close()
    with MetricsLog(tmp_path / "eval_test") as log:
        for step, accuracy in {1: 0.5, 2: 0.9, 3: 0.4, 4: math.nan}.items():
            log.write(step, {"accuracy": accuracy})
    return tmp_path


def restored(logdir, steps):
    return decode(checkpoint_average.restore_mean(logdir, steps, weights(0)), weights(0))


def test_it_is_the_mean_of_floats_and_the_first_of_all_else(logdir):
    mean = restored(logdir, [2, 4, 1, 3])
    all_of_them = [weights(step)["params"] for step in (1, 2, 3, 4)]
    expected = jax.tree.map(lambda *xs: (sum(x.astype(np.float64) for x in xs) / 4).astype(xs[0].dtype), *all_of_them)
    toy.assert_bit_equal(mean, {"params": expected, "extra": {"count": np.array(2, np.int32)}})
    toy.assert_bit_equal(restored(logdir, [2, 1, 3, 4]), mean)


def test_of_one_it_is_that_one(logdir):
    toy.assert_bit_equal(restored(logdir, [3]), weights(3))


@pytest.mark.parametrize(
    ("which", "number", "steps"),
    [("latest", 1, [4]), ("latest", 3, [4, 3, 2]), ("3", 2, [3, 2]), ("best", 1, [2]), ("best", 3, [2, 1, 3])],
)
def test_which_are_averaged(logdir, which, number, steps):
    assert checkpoint_average.resolve(logdir, which, number, BEST) == steps
    assert checkpoints.resolve(logdir, which, BEST) == steps[:1]


@pytest.mark.parametrize(
    ("which", "number", "message"),
    [
        ("latest", 0, r"^--average must be >= 1 \(got 0\)$"),
        ("all", 2, "^--average goes with one checkpoint, latest, best or a step, not with --checkpoint all$"),
        ("3", 4, "^--average 4: the checkpoints up to step 3 are 1, 2, 3; train.checkpoints.keep_last says how many"),
        ("best", 4, "^--average 4: the checkpoints with a score are 1, 2, 3; train.checkpoints.best.keep says how"),
        ("7", 1, "^no checkpoint '7' in "),
    ],
)
def test_what_cannot_be_averaged(logdir, which, number, message):
    with pytest.raises(RequestError, match=message):
        checkpoint_average.resolve(logdir, which, number, BEST)


def test_without_a_metric_there_is_no_best(logdir):
    with pytest.raises(RequestError, match=r"this experiment sets no train\.checkpoints\.best"):
        checkpoint_average.resolve(logdir, "best", 2, None)
