"""The distributions of initial weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raylingvo.models.layers import initializers as init

SHAPE = (5, 4, 30, 50)


@pytest.mark.parametrize(
    ("initializer", "limit"),
    [
        (init.uniform(0.3), 0.3),
        (init.uniform_sqrt_dim(2.0), 2.0 / np.sqrt(5)),
        (init.uniform_unit_scaling(1.5), 1.5 * np.sqrt(3 / 600)),
        (init.xavier(), np.sqrt(6 / (20 * 80))),
        (init.xavier(0.5), 0.5 * np.sqrt(6 / (20 * 80))),
    ],
)
def test_uniform(initializer, limit):
    weights = initializer(jax.random.key(0), SHAPE, jnp.float32)
    assert weights.shape == SHAPE
    assert weights.dtype == jnp.float32
    assert 0.99 * limit < jnp.abs(weights).max() <= limit
    np.testing.assert_allclose(weights.std(), limit / np.sqrt(3), rtol=0.02)


@pytest.mark.parametrize(
    ("initializer", "deviation"), [(init.gaussian(0.3), 0.3), (init.gaussian_sqrt_dim(2.0), 2.0 / np.sqrt(5))]
)
def test_gaussian(initializer, deviation):
    weights = initializer(jax.random.key(0), SHAPE, jnp.float32)
    np.testing.assert_allclose([weights.mean(), weights.std()], [0, deviation], atol=0.02 * deviation)


def test_constants():
    assert (init.constant(0.7)(jax.random.key(0), (3,)) == np.float32(0.7)).all()
    assert (init.zeros(jax.random.key(0), (3,)) == 0).all()
