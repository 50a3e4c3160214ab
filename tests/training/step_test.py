"""The train step: a pure function of state and batch, which skips what is not finite as a whole."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from flax import nnx

from raylingvo.metrics.means import WeightedMeans, to_means, zeros_like_metrics
from raylingvo.training.learner import Learner
from raylingvo.training.optimizers import Adam, Sgd
from raylingvo.training.schedules import LinearRampupExponentialDecay
from raylingvo.training.state import init_state
from raylingvo.training.step import make_train_step

ADAM = Learner(learning_rate=0.05, optimizer=Adam())
SIMPLE = toy.Regression(dropout=0.0)  # compiles in half the time
# No dropout, and updates that are the gradients times the rate.
PLAIN = toy.experiment(task=SIMPLE, learner=Learner(learning_rate=0.5, optimizer=Sgd()))


@functools.cache
def compiled(experiment):
    """The step and the initial state. Compiling them is nearly all that a test here would do."""
    return jax.jit(make_train_step(experiment)), init_state(experiment, toy.batches(1)[0])


class Run:
    """Some steps of an experiment: the states after each, the first being the initial one."""

    def __init__(self, experiment, batches):
        self.step, initial = compiled(experiment)
        self.states, self.nonfinite = [initial], []
        for batch in batches:
            state, nonfinite_in_a_row = self.step(self.states[-1], batch)
            self.states.append(state)
            self.nonfinite.append(int(nonfinite_in_a_row))

    @property
    def last(self):
        return self.states[-1]


def spoiled(batch):
    y = batch["y"].copy()
    y[0] = np.nan
    return {**batch, "y": y}


def results(state):
    return to_means(jax.device_get(state.totals))


def loss_of(state, batch, step):
    """The loss of one batch alone, with the weights of `state`."""
    return results(step(state._replace(totals=zeros_like_metrics(state.totals)), batch)[0])["loss"]


def test_the_loss_falls():
    experiment = toy.experiment(task=SIMPLE, learner=ADAM)
    batches = toy.batches(100)
    run = Run(experiment, batches)
    first, last = (loss_of(state, batches[0], run.step) for state in (run.states[0], run.last))
    assert last < 0.1 * first


def test_the_same_seed_gives_the_same_bits():
    experiment = toy.experiment(learner=ADAM)
    first = Run(experiment, toy.batches(5)).last
    compiled.cache_clear()
    toy.assert_bit_equal(Run(experiment, toy.batches(5)).last, first)


def test_what_is_random_depends_on_the_key_and_the_step_only():
    run = Run(toy.experiment(learner=ADAM), toy.batches(1))
    state, batch = run.states[0], toy.batches(1)[0]

    def loss(**changes):
        return loss_of(state._replace(**changes), batch, run.step)

    assert loss(opt_state=run.last.opt_state, nonfinite_in_a_row=jnp.int32(2)) == loss()
    assert loss(step=jnp.int32(1)) != loss()
    assert loss(rng=state.rng + 1) != loss()
    toy.assert_bit_equal(run.last.rng, state.rng)


def test_totals_are_the_weighted_means_of_the_steps():
    batches = toy.batches(6)
    for batch, real in zip(batches, [8, 3, 8, 1, 5, 8], strict=True):
        batch["weight"] = (np.arange(8) < real).astype(np.float32)
    run = Run(toy.experiment(learner=ADAM), batches)
    means = WeightedMeans()
    for batch, state in zip(batches, run.states[:-1], strict=True):
        weight = float(batch["weight"].sum())
        means.add({"loss": (loss_of(state, batch, run.step), weight), "num_rows": (weight, 1.0)})
    actual, expected = results(run.last), means.result()
    assert {name: actual[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert actual["num_rows"] == 33
    assert actual["num_skipped_updates"] == 0


def test_norms_and_rate_are_reported():
    run = Run(PLAIN, toy.batches(1))
    before, after = (jax.tree.leaves(state.weights.params) for state in (run.states[0], run.last))
    steps = [(b - a) / 0.5 for b, a in zip(before, after, strict=True)]
    actual = results(run.last)
    assert actual["learning_rate"] == 0.5
    assert actual["grad_norm/all"] == pytest.approx(np.sqrt(sum(np.square(x).sum() for x in steps)), rel=1e-4)
    assert actual["var_norm/all"] == pytest.approx(np.sqrt(sum(np.square(x).sum() for x in before)), rel=1e-5)


def far_off(batch):
    """The loss is finite, the norm of the gradients is not."""
    return {**batch, "y": np.full(8, 1.7e19, np.float32), "weight": np.eye(8, dtype=np.float32)[0]}


def test_a_far_off_batch_has_a_finite_loss():
    run = Run(toy.experiment(learner=ADAM), toy.batches(1))
    loss, _ = SIMPLE.loss(SIMPLE.init(nnx.Rngs(0)), far_off(toy.batches(1)[0]), jax.random.key(0))
    assert np.isfinite(loss)
    assert int(run.step(run.last, far_off(toy.batches(1)[0]))[1]) == 1


@pytest.mark.parametrize("spoil", [spoiled, far_off])
def test_an_update_that_is_not_finite_changes_neither_weights_nor_optimizer(spoil):
    good = toy.batches(5)
    run = Run(toy.experiment(learner=ADAM), [*good[:2], spoil(good[2]), spoil(good[3]), good[4]])
    for before, after in ((2, 3), (3, 4)):
        for field in ("weights", "opt_state"):
            toy.assert_bit_equal(getattr(run.states[after], field), getattr(run.states[before], field))
    assert run.nonfinite == [0, 0, 1, 2, 0]
    assert [int(state.nonfinite_in_a_row) for state in run.states] == [0, 0, 0, 1, 2, 0]
    assert [int(state.step) for state in run.states] == [0, 1, 2, 3, 4, 5]
    # Training goes on as if those batches had not been there, but for the step, and so the schedule and the key.
    toy.assert_bit_equal(
        run.last, run.step(run.states[2]._replace(step=jnp.int32(4), totals=run.states[4].totals), good[4])[0]
    )


def test_the_metrics_of_a_skipped_update_do_not_count():
    good = toy.batches(3)
    with_skips = Run(toy.experiment(learner=ADAM), [good[0], spoiled(good[1])]).last
    without = Run(toy.experiment(learner=ADAM), good[:1]).last
    assert results(with_skips) == results(without) | {
        "num_skipped_updates": 1.0,
        "has_nan_or_inf": 0.5,
        "grad_scale_all": 0.5,
    }


def test_the_schedule_counts_skipped_steps():
    schedule = LinearRampupExponentialDecay(warmup=10, decay_start=10, decay_end=20, min=0.1)
    good = toy.batches(4)
    run = Run(
        toy.experiment(task=SIMPLE, learner=dataclasses.replace(ADAM, schedule=schedule)),
        [good[0], spoiled(good[1]), good[2]],
    )
    rates = [float(state.totals["learning_rate"][0]) for state in run.states]
    np.testing.assert_allclose(np.diff(rates), [0.0, 0.0, 0.05 * 2 / 10], rtol=1e-6)


def test_the_rate_can_change_without_compiling_again():
    run = Run(PLAIN, toy.batches(1))
    start, batch = run.states[0], toy.batches(1)[0]
    doubled, _ = run.step(start._replace(learning_rate=jnp.float32(1.0)), batch)
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(c - a, 2 * (b - a), rtol=1e-3, atol=1e-6),
        start.weights.params,
        run.last.weights.params,
        doubled.weights.params,
    )
    assert run.step._cache_size() == 1


def test_variables_that_are_not_trained_follow_the_module():
    batches = toy.batches(2)
    run = Run(toy.experiment(learner=ADAM), batches)
    seen = np.zeros(4)
    for batch in batches:
        seen = 0.9 * seen + 0.1 * batch["x"].mean(axis=0)
    np.testing.assert_allclose(run.last.weights.extra["seen"], seen, rtol=1e-5)


def test_weights_keep_their_types():
    state = Run(toy.experiment(task=toy.Regression(dtype="bfloat16", dropout=0.0), learner=ADAM), toy.batches(2)).last
    assert {str(x.dtype) for x in jax.tree.leaves(state.weights.params["hidden"])} == {"bfloat16"}
    assert {str(x.dtype) for x in jax.tree.leaves(state.weights.params["out"])} == {"float32"}


def test_the_second_result_outlives_the_donated_state():
    experiment, batch = toy.experiment(task=SIMPLE, learner=ADAM), toy.batches(1)[0]
    step = jax.jit(make_train_step(experiment), donate_argnums=0)
    state, nonfinite_in_a_row = step(init_state(experiment, batch), spoiled(batch))
    step(state, batch)
    assert state.nonfinite_in_a_row.is_deleted()
    assert int(nonfinite_in_a_row) == 1
