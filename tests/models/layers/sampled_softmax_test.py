"""Sampled softmax against TensorFlow's, and against what it says about itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from raylingvo.models.layers.losses import cross_entropy
from raylingvo.models.layers.sampled_softmax import (
    Candidates,
    _log_uniform,
    log_expected_count,
    log_uniform_candidates,
    sampled_cross_entropy,
)
from raylingvo.models.layers.softmax import Softmax

N, D, V, S = 24, 5, 40, 12
draw = jax.jit(log_uniform_candidates, static_argnums=(1, 2))
draw_with_replacement = jax.jit(_log_uniform, static_argnums=(1, 2))


def _probabilities(num_classes):
    k = np.arange(num_classes)
    return np.log((k + 2) / (k + 1)) / np.log(num_classes + 1)


def test_candidates_are_different_and_as_many_as_asked_for():
    for seed in range(20):
        ids, num_tries = draw(jax.random.key(seed), S, V)
        assert len(set(ids.tolist())) == S
        assert ids.min() >= 0 and ids.max() < V
        assert num_tries >= S
    assert set(draw(jax.random.key(0), V, V).ids.tolist()) == set(range(V))


def test_candidates_and_tries_are_those_of_drawing_one_by_one():
    """Also where one block of draws does not do: 38 of 40."""
    for seed, num_sampled in ((0, S), (1, 38), (2, 1)):
        rng, seen, tries = jax.random.key(seed), [], 0
        block = 0
        while len(seen) < num_sampled:
            for k in draw_with_replacement(jax.random.fold_in(rng, block), 2 * num_sampled, V).tolist():
                if len(seen) < num_sampled:
                    tries += 1
                    if k not in seen:
                        seen.append(k)
            block += 1
        candidates = draw(rng, num_sampled, V)
        assert (candidates.ids.tolist(), int(candidates.num_tries)) == (seen, tries)


@pytest.mark.parametrize("num_classes", [V, 793_472])
def test_classes_come_as_often_as_stated(num_classes):
    """Chi-square over bins of equal probability; in the largest vocabulary also among the last ids."""
    number = 400_000
    drawn = np.asarray(draw_with_replacement(jax.random.key(0), number, num_classes))
    edges = np.unique(np.concatenate([np.arange(20), np.geomspace(20, num_classes, 60).astype(int)]))
    edges = edges[edges <= num_classes]
    expected = np.add.reduceat(_probabilities(num_classes), edges[:-1])[: len(edges) - 1] * number
    observed = np.histogram(drawn, edges)[0]
    assert observed.sum() == number
    chi_square = ((observed - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


def test_no_class_of_a_large_vocabulary_is_out_of_reach():
    """exp(u * log(V + 1)) of a float32 u would miss about a quarter of the last ids for ever."""
    num_classes = 793_472
    # The places of the last octave, from the smallest steps that a float32 in [0, 1) has.
    places = jnp.arange(2**20, dtype=jnp.float32) * 2.0**-23 + 0.5
    reached = np.unique(np.asarray(jnp.floor(jnp.exp2(places) * 2.0**19)))
    assert (np.diff(reached) == 1).all()
    assert 2**19 * 2**0.5 <= reached[0] + 1 < num_classes


def test_expected_counts_are_tensorflows(recorded_tensorflow):
    def compute(tf):
        ids, expected, sampled = tf.random.log_uniform_candidate_sampler(
            true_classes=np.arange(V).reshape(1, V), num_true=V, num_sampled=S, unique=True, range_max=V, seed=3
        )
        return {"ids": ids, "expected": expected[0], "sampled": sampled}

    drawn = recorded_tensorflow("log_uniform_candidates.json", compute)
    # TensorFlow does not say how many tries it took: the first class's expected count tells.
    tries = np.log1p(-np.float64(drawn["expected"][0])) / np.log1p(-_probabilities(V)[0])
    assert abs(tries - round(tries)) < 1e-3
    candidates = Candidates(jnp.asarray(drawn["ids"], jnp.int32), jnp.int32(round(tries)))
    for classes, expected in ((jnp.arange(V), drawn["expected"]), (candidates.ids, drawn["sampled"])):
        np.testing.assert_allclose(np.exp(log_expected_count(candidates, classes, V)), expected, rtol=1e-5)


def test_an_expected_count_is_how_often_a_class_is_there():
    """Given the number of tries, as TensorFlow has it; over all of them it is nearly so."""
    keys = jax.random.split(jax.random.key(0), 2000)
    candidates = jax.jit(jax.vmap(lambda key: log_uniform_candidates(key, S, V)))(keys)
    expected = jax.vmap(lambda c: jnp.exp(log_expected_count(c, jnp.arange(V), V)))(candidates).mean(axis=0)
    observed = np.bincount(np.asarray(candidates.ids).ravel(), minlength=V) / 2000
    np.testing.assert_allclose(expected.sum(), S, rtol=0.02)
    np.testing.assert_allclose(observed, expected, atol=4 * 0.5 / np.sqrt(2000))


def _arrays(seed=0):
    rng = np.random.default_rng(seed)
    x, kernel, bias = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((N, D), (V, D), (V,)))
    return x, kernel, bias, jnp.asarray(rng.integers(0, V, N), jnp.int32)


def test_loss_and_gradients_are_tensorflows(recorded_tensorflow):
    def compute(tf):
        x, kernel, bias, labels = _arrays()
        candidates = draw(jax.random.key(1), S, V)
        expected_true, expected_sampled = (
            np.asarray(jnp.exp(log_expected_count(candidates, classes, V))) for classes in (labels, candidates.ids)
        )
        ids = np.asarray(candidates.ids, np.int64)
        variables = {name: tf.Variable(np.asarray(a)) for name, a in (("x", x), ("kernel", kernel), ("bias", bias))}
        with tf.GradientTape() as tape:
            losses_N = tf.nn.sampled_softmax_loss(
                weights=variables["kernel"],
                biases=variables["bias"],
                labels=np.asarray(labels, np.int64)[:, None],
                inputs=variables["x"],
                num_sampled=S,
                num_classes=V,
                sampled_values=(ids, expected_true[:, None], expected_sampled),
            )
            total = tf.reduce_sum(losses_N)
        gradients = {name: tf.convert_to_tensor(g) for name, g in tape.gradient(total, variables).items()}
        inputs = {"x": x, "kernel": kernel, "bias": bias, "labels": labels, "ids": ids, "tries": candidates.num_tries}
        return inputs | {"losses": losses_N} | {f"gradient_{name}": gradient for name, gradient in gradients.items()}

    expected = recorded_tensorflow("sampled_softmax_loss.json", compute)
    candidates = Candidates(jnp.asarray(expected["ids"], jnp.int32), jnp.asarray(expected["tries"], jnp.int32))
    x, kernel, bias, labels = (jnp.asarray(expected[name]) for name in ("x", "kernel", "bias", "labels"))
    assert np.isin(labels, candidates.ids).any() and not np.isin(labels, candidates.ids).all()

    def loss(x, kernel, bias):
        loss_N = sampled_cross_entropy(x, kernel, bias, labels, candidates)
        return loss_N.sum(), loss_N

    (_, loss_N), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(x, kernel, bias)
    np.testing.assert_allclose(loss_N, expected["losses"], rtol=1e-5, atol=1e-5)
    for got, name in zip(gradients, ("x", "kernel", "bias"), strict=True):
        np.testing.assert_allclose(got, expected[f"gradient_{name}"], atol=3e-5, err_msg=name)


def test_the_gradient_is_nearly_that_of_the_whole_softmax():
    """Few tokens, nearly all classes, on average over draws: what the correction is for."""
    x, kernel, bias, labels = _arrays()
    softmax = Softmax(D, V, rngs=nnx.Rngs(0))
    softmax.kernel[...], softmax.bias[...] = 0.3 * kernel, bias

    def sampled(x, key):
        return softmax.sampled_cross_entropy(x, labels, log_uniform_candidates(key, 30, V)).mean()

    keys = jax.random.split(jax.random.key(0), 300)
    got = jax.jit(lambda x: jax.lax.map(lambda key: jax.grad(sampled)(x, key), keys).mean(axis=0))(x)
    whole = jax.jit(jax.grad(lambda x: cross_entropy(softmax.scores(x, labels), V).mean()))(x)
    assert jnp.linalg.norm(got - whole) < 0.05 * jnp.linalg.norm(whole)


def test_all_classes_surely_expected_is_the_whole_softmax():
    x, kernel, bias, labels = _arrays()
    sure = Candidates(jnp.arange(V), jnp.int32(1_000_000))
    logits = x @ kernel.T + bias[None, :]
    expected = np.log(np.exp(logits).sum(-1)) - logits[np.arange(N), labels]
    np.testing.assert_allclose(sampled_cross_entropy(x, kernel, bias, labels, sure), expected, rtol=1e-4, atol=1e-5)


def test_labels_of_another_vocabulary_are_seen():
    x, kernel, bias, labels = _arrays()
    losses = sampled_cross_entropy(x, kernel, bias, labels.at[3].set(V), draw(jax.random.key(1), S, V))
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(losses)), [3])


@pytest.mark.parametrize("num_sampled", [0, V + 1])
def test_more_candidates_than_classes_are_refused(num_sampled):
    with pytest.raises(ValueError, match=r"num_sampled must be in \[1, 40\]"):
        log_uniform_candidates(jax.random.key(0), num_sampled, V)
