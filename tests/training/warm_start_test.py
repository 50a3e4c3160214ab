"""A warm start: variables of another run's checkpoint under the names that rules give them."""

import contextlib

import jax
import numpy as np
import pytest
import toy

from raylingvo.config import dump, load
from raylingvo.errors import RequestError
from raylingvo.experiment import Checkpoints, Experiment, WarmStart
from raylingvo.training.checkpoints import CheckpointWriter
from raylingvo.training.state import init_state
from raylingvo.training.warm_start import resolved, warm_started

BATCH = toy.batches(1)[0]


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    """A run with the checkpoint 7, of seed 1."""
    path = tmp_path_factory.mktemp("source")
    state = jax.device_get(init_state(toy.experiment(seed=1), BATCH))
    with contextlib.closing(CheckpointWriter(path, Checkpoints(), tell=lambda line: None)) as writer:
        writer.save(7, state, {}, on_saved=lambda: None)
    return path


def started(state, logdir, **settings):
    return warm_started(state, resolved(WarmStart(logdir=str(logdir), **settings)))


@pytest.fixture(scope="module")
def source():
    return init_state(toy.experiment(seed=1), BATCH)


@pytest.fixture(scope="module")
def fresh():
    return init_state(toy.experiment(seed=2, ema_decay=0.9), BATCH)


def test_without_rules_all_weights_are_taken(logdir, source, fresh):
    state = started(fresh, logdir)
    toy.assert_bit_equal(state.weights, source.weights)
    toy.assert_bit_equal(state.average, source.weights)
    kept = [field for field in state._fields if field not in ("weights", "average")]
    toy.assert_bit_equal([getattr(state, f) for f in kept], [getattr(fresh, f) for f in kept])
    leaves = jax.tree.leaves(state)
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)


def test_rules_rename_and_choose(logdir, source, fresh):
    rules = ((r"hidden/bias", "hidden/bias"), (r"(out)/(kernel)", r"\1/\2"), (r"seen", "seen"), (r"out/.*", "nothing"))
    state = started(fresh, logdir, checkpoint=7, rules=rules[:3])
    ours, theirs = state.weights.params, source.weights.params
    np.testing.assert_array_equal(ours["out"]["kernel"], theirs["out"]["kernel"])
    np.testing.assert_array_equal(ours["hidden"]["kernel"], fresh.weights.params["hidden"]["kernel"])
    assert (ours["hidden"]["kernel"] != theirs["hidden"]["kernel"]).any()
    with pytest.raises(RequestError, match="has no variable 'nothing' \\(for out/bias\\)"):
        started(fresh, logdir, rules=rules)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rules": (("out/bias", "hidden/bias"),)}, r"hidden/bias is of shape \(6,\), out/bias of \(1,\)$"),
        (
            {"rules": (("out/(.*)", r"out/\1"), ("idden/kernel", "x"))},
            r"'idden/kernel' matches no variable as a whole; there are hidden/bias, .*seen$",
        ),
        ({"checkpoint": 9}, r"no checkpoint 9 in .*; it has 7$"),
        ({"logdir": "/no/such"}, r"no checkpoint in /no/such/train/checkpoints$"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(logdir, fresh, settings, message):
    with pytest.raises(RequestError, match=rf"^train.warm_start\..*: .*{message}") as error:
        started(fresh, **{"logdir": logdir} | settings)
    assert "\n" not in str(error.value)


def test_resolved_settings_mean_the_same_elsewhere_and_later(logdir, fresh, monkeypatch):
    monkeypatch.chdir(logdir.parent)
    found = resolved(WarmStart(logdir=logdir.name))
    assert (found.logdir, found.checkpoint) == (str(logdir), 7)
    assert resolved(found) == found
    with pytest.raises(ValueError, match=r"checkpoint must be a step \(got 'latest'\): call resolved"):
        warm_started(fresh, WarmStart(logdir=str(logdir)))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"rules must have at least one \(got none\)"):
        WarmStart(logdir="x", rules=())
    with pytest.raises(ValueError, match=r"checkpoint must be latest or a step \(got 'all'\)"):
        WarmStart(logdir="x", checkpoint="all")
    with pytest.raises(ValueError, match=r"rules: '\\\\2' does not fit"):
        WarmStart(logdir="x", rules=(("(a)", r"\2"),))


def test_it_is_plain_data():
    experiment = toy.experiment(warm_start=WarmStart(logdir="runs/a", checkpoint=300, rules=(("a/(.*)", r"b/\1"),)))
    assert load(dump(experiment), Experiment) == experiment
