"""Averages of weights: the recurrence, what a step that is not finite leaves alone, and the exchange."""

import jax
import jax.numpy as jnp
import numpy as np
import toy

from raylingvo.training.average import averaged, exchanged
from raylingvo.training.learner import Learner
from raylingvo.training.optimizers import Sgd
from raylingvo.training.schedules import EmaDecay
from raylingvo.training.state import Weights, init_state
from raylingvo.training.step import make_train_step

SIMPLE = toy.Regression(dropout=0.0)


def states_of(batches, **train):
    experiment = toy.experiment(task=SIMPLE, learner=Learner(learning_rate=0.1, optimizer=Sgd()), **train)
    step = jax.jit(make_train_step(experiment))
    states = [init_state(experiment, batches[0])]
    for batch in batches:
        states.append(step(states[-1], batch)[0])
    return states


def test_the_average_follows_the_weights_but_not_what_is_not_finite():
    batches = toy.batches(4)
    batches[2]["y"] = batches[2]["y"] * np.nan
    states = states_of(batches, ema_decay=0.8)
    expected = np.asarray(states[0].weights.params["hidden"]["kernel"], np.float64)
    for i, state in enumerate(states[1:]):
        if i != 2:
            expected = 0.8 * expected + 0.2 * np.asarray(state.weights.params["hidden"]["kernel"])
        # An element near zero is a sum of larger ones, each rounded to float32.
        np.testing.assert_allclose(state.average.params["hidden"]["kernel"], expected, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(state.average.extra["seen"], state.weights.extra["seen"])


def test_averages_do_not_change_training():
    batches = toy.batches(3)
    on, off = (states_of(batches, **train)[-1] for train in ({"ema_decay": 0.8}, {}))
    toy.assert_bit_equal(on._replace(average=()), off)


def train_settings(**settings):
    return toy.experiment(**settings).train


OLD = Weights({"a": jnp.array([1.0])}, {"m": jnp.array([3.0]), "n": jnp.array([1])})
NEW = Weights({"a": jnp.array([2.0])}, {"m": jnp.array([5.0]), "n": jnp.array([2])})


def test_a_schedule_takes_the_place_of_the_decay():
    settings = train_settings(ema_schedule=EmaDecay(ema_decay=0.9))
    first = averaged(settings, OLD, NEW, jnp.int32(0))
    np.testing.assert_allclose(first.params["a"], 0.1 * 1 + 0.9 * 2, rtol=1e-6)


def test_moving_statistics_are_averaged_if_asked_for():
    plain = averaged(train_settings(ema_decay=0.5), OLD, NEW, jnp.int32(0))
    assert plain.extra == NEW.extra
    both = averaged(train_settings(ema_decay=0.5, ema_decay_moving_vars=True), OLD, NEW, jnp.int32(0))
    assert (float(both.extra["m"][0]), int(both.extra["n"][0])) == (4.0, 2)


def test_the_averages_of_what_a_step_leaves_alone_rest():
    settings = train_settings(ema_decay=0.5, ema_decay_moving_vars=True)
    after = averaged(settings, OLD, NEW, jnp.int32(0), {"a", "n"})
    assert (float(after.params["a"][0]), float(after.extra["m"][0]), int(after.extra["n"][0])) == (1.0, 4.0, 2)


def test_the_exchange_is_its_own_inverse():
    state = states_of(toy.batches(1), ema_decay=0.8)[-1]
    assert exchanged(state).weights is state.average
    toy.assert_bit_equal(exchanged(exchanged(state)), state)
    without = state._replace(average=())
    assert exchanged(without) is without
