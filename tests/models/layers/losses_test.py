import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raylingvo.models.layers.losses import class_scores, cross_entropy, weighted_mean, weighted_sum, z_loss

V = 11
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 4, V)).astype(np.float32) * 3
LABELS = RNG.integers(0, V, (3, 4)).astype(np.int32)
LOG_PROBS = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))


def _smoothed(eps, smoothing):
    """What is stated, as a distribution."""
    label = np.eye(V)[LABELS]
    return label * (1 - eps) + (1 - label) * eps / (V - 1) if smoothing == "others" else label * (1 - eps) + eps / V


@pytest.mark.parametrize("smoothing", ["others", "all"])
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.5])
def test_cross_entropy_with_the_smoothed_distribution(eps, smoothing):
    target = _smoothed(eps, smoothing)
    np.testing.assert_allclose(target.sum(-1), 1)

    def loss(logits):
        return cross_entropy(class_scores(logits, LABELS), V, label_smoothing=eps, smoothing=smoothing)

    np.testing.assert_allclose(loss(LOGITS), -(target * LOG_PROBS).sum(-1), rtol=1e-5)
    gradient = jax.grad(lambda logits: loss(logits).sum())(LOGITS)
    np.testing.assert_allclose(gradient, np.exp(LOG_PROBS) - target, atol=1e-6)


def test_scores_by_hand():
    scores = class_scores(jnp.array([[1.0, 3.0, 3.0], [-2.0, -1.0, -4.0]]), jnp.array([0, 1]))
    np.testing.assert_array_equal(scores.label_logit, [1, -1])
    np.testing.assert_allclose(scores.log_z, np.log([np.e + 2 * np.e**3, np.exp([-2, -1, -4]).sum()]), rtol=1e-6)
    np.testing.assert_array_equal(scores.sum_logits, [7, -7])
    np.testing.assert_array_equal(scores.best, [1, 1])  # of equal ones the lowest, as argmax


def test_huge_logits_do_not_overflow():
    scores = class_scores(jnp.array([[3e4, -3e4, 0.0]]), jnp.array([0]))
    np.testing.assert_allclose(cross_entropy(scores, 3), [0.0])


def test_labels_of_another_vocabulary_are_seen():
    losses = cross_entropy(class_scores(jnp.zeros((3, V)), jnp.array([V - 1, V, -1])), V)
    np.testing.assert_array_equal(jnp.isnan(losses), [False, True, True])


def test_z_loss_is_the_square_of_the_log_of_the_normaliser():
    scores = class_scores(LOGITS, LABELS)
    np.testing.assert_allclose(z_loss(scores, 1e-4), 1e-4 * np.log(np.exp(LOGITS).sum(-1)) ** 2, rtol=1e-5)


@pytest.mark.parametrize("eps", [-0.1, 1.0])
def test_a_smoothing_out_of_range_is_refused(eps):
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        cross_entropy(class_scores(LOGITS, LABELS), V, label_smoothing=eps)


def test_means_are_weighted_and_what_weighs_nothing_may_be_nan():
    values, weights = jnp.array([[1.0, 2.0], [jnp.nan, 5.0]]), jnp.array([[1.0, 0.5], [0.0, 2.0]])
    assert weighted_mean(values, weights) == (12.0 / 3.5, 3.5)
    assert weighted_sum(values, weights) == 12.0
    assert weighted_mean(values, jnp.zeros((2, 2))) == (0.0, 0.0)
    np.testing.assert_array_equal(jax.grad(weighted_sum)(values, weights), weights)
