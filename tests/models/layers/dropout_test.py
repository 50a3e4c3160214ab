"""Dropout: how many elements it drops, and which together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raylingvo.models.layers.dropout import dropout, split

KEY = jax.random.key(3)


def test_the_mean_stays():
    x = dropout(jnp.ones((100, 200)), 0.25, KEY)
    assert set(np.unique(x)) == {np.float32(0), np.float32(1 / 0.75)}
    np.testing.assert_allclose(x.mean(), 1, atol=0.02)


def test_one_decision_for_an_axis():
    x = dropout(jnp.ones((4, 50, 6)), 0.5, KEY, broadcast_axes=(-1, 0))
    assert (x == x[:1, :, :1]).all()
    assert 10 < (x[0, :, 0] == 0).sum() < 40


def test_nothing_outside_training():
    x = jnp.ones((4, 5))
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, KEY) is x
    assert split(None, 2) == [None, None]


def test_bfloat16_stays():
    assert dropout(jnp.ones(3, jnp.bfloat16), 0.1, KEY).dtype == jnp.bfloat16


def test_the_rate_is_a_probability():
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\) \(got 1\)"):
        dropout(jnp.ones(3), 1, None)
