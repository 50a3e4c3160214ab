"""Variational noise: on which weights, from which step, and that evaluation has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from raylingvo.errors import RequestError
from raylingvo.training.noise import with_noise
from raylingvo.training.state import init_state

PARAMS = {"lstm": {"kernel": jnp.zeros((100, 100)), "bias": jnp.zeros(100, jnp.bfloat16)}, "conv": jnp.zeros(1000)}
KEY = jax.random.key(3)


def noisy(step=5, key=KEY, **settings):
    return with_noise(toy.experiment(**settings).train, PARAMS, jnp.int32(step), key)


def test_it_is_normal_with_the_deviation_asked_for():
    values = noisy(vn_std=0.5)
    assert float(values["lstm"]["kernel"].std()) == pytest.approx(0.5, rel=0.05)
    assert abs(float(values["lstm"]["kernel"].mean())) < 0.02
    assert values["lstm"]["bias"].dtype == jnp.bfloat16
    assert len({float(x.reshape(-1)[0]) for x in jax.tree.leaves(values)}) == 3  # each its own


def test_it_begins_at_a_step():
    before, after = (noisy(step, vn_std=0.5, vn_start_step=5) for step in (4, 5))
    toy.assert_bit_equal(before, PARAMS)
    assert (after["conv"] != 0).any()


def test_variables_are_chosen_by_path():
    values = noisy(vn_std=0.5, vn_variables="^lstm/k")
    assert (values["lstm"]["kernel"] != 0).all()
    toy.assert_bit_equal((values["lstm"]["bias"], values["conv"]), (PARAMS["lstm"]["bias"], PARAMS["conv"]))


def test_a_pattern_of_no_weight_is_refused_if_there_is_noise():
    batch = toy.batches(1)[0]
    init_state(toy.experiment(vn_variables="no such"), batch)
    with pytest.raises(
        RequestError, match=r"^train.vn_variables: 'no such' matches no weight; there are hidden/bias, "
    ):
        init_state(toy.experiment(vn_std=0.5, vn_variables="no such"), batch)


def test_it_depends_on_the_key_only():
    toy.assert_bit_equal(noisy(vn_std=0.5), noisy(6, vn_std=0.5))
    assert (noisy(vn_std=0.5)["conv"] != noisy(key=jax.random.key(4), vn_std=0.5)["conv"]).all()
    assert noisy() is PARAMS


def test_gradients_are_taken_at_the_noisy_weights():
    settings = toy.experiment(vn_std=0.5).train

    def loss(params):
        return jnp.sum(with_noise(settings, params, jnp.int32(0), KEY)["conv"] ** 2)

    np.testing.assert_allclose(jax.grad(loss)(PARAMS)["conv"], 2 * noisy(0, vn_std=0.5)["conv"], rtol=1e-6)
