"""The tracker: the formula written out, and what it never drops."""

import jax
import jax.numpy as jnp
import numpy as np

from raylingvo.training.grad_norm_tracker import GradNormTracker


def follow(tracker, norms, finite=None):
    step = jax.jit(tracker)
    state, kept = tracker.init(), []
    for i, norm in enumerate(norms):
        keep, state = step(jnp.float32(norm), jnp.array(True if finite is None else finite[i]), state)
        kept.append(bool(keep))
    return kept, state


def test_a_spike_is_dropped_once_the_averages_have_weight():
    norms = np.exp(np.random.default_rng(0).normal(size=60)).astype(np.float32)
    norms[[5, 50]] = 1e6
    kept, state = follow(GradNormTracker(decay=0.9), norms)
    assert [i for i, keep in enumerate(kept) if not keep] == [50]

    mean = square = weight = 0.0
    for norm in norms:
        total = weight + 0.1 * (1 - weight)
        cap = mean / total + 4 * np.sqrt(max(square / total - (mean / total) ** 2, 1e-6))
        value = min(np.log1p(norm), cap)
        mean, square, weight = (a + 0.1 * (b - a) for a, b in ((mean, value), (square, value**2), (weight, 1.0)))
    actual = [float(x) for x in state[:3]]
    np.testing.assert_allclose(actual, [mean, square, weight], rtol=1e-3)


def test_what_is_not_finite_is_dropped_and_forgotten():
    norms = [1.0, 2.0, np.nan, 3.0]
    kept, state = follow(GradNormTracker(), norms, [True, True, False, True])
    assert kept == [True, True, False, True]
    _, without = follow(GradNormTracker(), [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(state[:3], without[:3])


def test_small_norms_are_never_dropped():
    norms = [*[1e-3] * 40, 5.0]
    assert not follow(GradNormTracker(decay=0.9, clip_threshold=1.0), norms)[0][-1]
    assert all(follow(GradNormTracker(decay=0.9, clip_threshold=1.0, grad_norm_clip_cap_min=6.0), norms)[0])
