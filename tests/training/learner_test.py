"""The learner: clipping by the global norm, then the optimizer; the rate stays outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raylingvo.training.learner import Learner
from raylingvo.training.optimizers import Adam, Sgd

GRADS = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}  # global norm 5


def direction(learner, grads):
    transformation = learner.build()
    return transformation.update(grads, transformation.init(grads), grads)[0]


@pytest.mark.parametrize(("clip", "factor"), [(0.0, 1.0), (10.0, 1.0), (5.0, 1.0), (2.5, 0.5), (0.05, 0.01)])
def test_clipping_keeps_the_direction_and_bounds_the_norm(clip, factor):
    learner = Learner(learning_rate=0.1, optimizer=Sgd(), clip_gradient_norm_to_value=clip)
    actual = direction(learner, GRADS)
    jax.tree.map(lambda a, g: np.testing.assert_allclose(a, factor * g, rtol=1e-6), actual, GRADS)


def test_the_rate_is_not_part_of_the_direction():
    slow, fast = (direction(Learner(learning_rate=rate), GRADS) for rate in (1e-4, 10.0))
    jax.tree.map(np.testing.assert_array_equal, slow, fast)


def test_clipping_comes_before_the_optimizer():
    learner = Learner(learning_rate=0.1, optimizer=Adam(), clip_gradient_norm_to_value=1e-3)
    clipped = jax.tree.map(lambda g: g * (1e-3 / 5), GRADS)
    expected = direction(Learner(learning_rate=0.1, optimizer=Adam()), clipped)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5), direction(learner, GRADS), expected)


@pytest.mark.parametrize("rate", [0.0, -0.1, float("nan")])
def test_a_bad_rate_is_refused(rate):
    with pytest.raises(ValueError, match=rf"learning_rate must be > 0 \(got {rate}\)"):
        Learner(learning_rate=rate)


def test_a_bad_clip_is_refused():
    with pytest.raises(ValueError, match=r"clip_gradient_norm_to_value must be >= 0 \(got -1.0\)"):
        Learner(learning_rate=1.0, clip_gradient_norm_to_value=-1.0)
