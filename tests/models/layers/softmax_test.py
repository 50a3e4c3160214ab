import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from raylingvo.models.layers.losses import class_scores
from raylingvo.models.layers.sampled_softmax import Candidates
from raylingvo.models.layers.softmax import Softmax
from raylingvo.models.layers.variables import logical_axes

D, V = 3, 10
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, D)), jnp.float32) * 2
LABELS = jnp.asarray(np.random.default_rng(1).integers(0, V, (2, 7)), jnp.int32)
CAPS = {"logits_abs_max": 3.0, "logits_soft_max": 2.5}


def _softmax(**settings):
    softmax = Softmax(D, V, rngs=nnx.Rngs(0), **settings)
    if softmax.bias is not None:
        softmax.bias[...] = jnp.linspace(-1, 1, V)
    return softmax


def _scores_and_gradients(softmax, x=X, labels=LABELS):
    """The scores, and the gradients of a loss in which all of them that have gradients take part, for x and weights."""

    def loss(softmax, x):
        scores = softmax.scores(x, labels)
        weight = jnp.linspace(0.5, 2, labels.size).reshape(labels.shape)
        return (weight * (scores.log_z - 0.8 * scores.label_logit + 0.02 * scores.sum_logits)).sum(), scores

    (_, scores), gradients = nnx.jit(nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True))(softmax, x)
    return scores, jax.tree.leaves(gradients)


@functools.cache
def _whole():
    return _scores_and_gradients(_softmax(**CAPS))


def test_scores_are_those_of_the_logits():
    for got, expected in zip(_whole()[0], class_scores(_softmax(**CAPS)(X), LABELS), strict=True):
        assert got.shape == LABELS.shape
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    "chunks",
    [
        {"classes_per_chunk": 5},
        {"classes_per_chunk": 4},  # and two more
        {"tokens_per_chunk": 4},  # two are missing
        {"classes_per_chunk": 3, "tokens_per_chunk": 7},
        {"classes_per_chunk": 99, "tokens_per_chunk": 99},
    ],
    ids=str,
)
def test_chunks_change_neither_scores_nor_gradients(chunks):
    (scores, gradients), (whole_scores, whole_gradients) = _scores_and_gradients(_softmax(**CAPS, **chunks)), _whole()
    np.testing.assert_array_equal(scores.best, whole_scores.best)
    for got, expected in zip([*scores, *gradients], [*whole_scores, *whole_gradients], strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_there_need_not_be_a_bias():
    softmax = _softmax(bias=False, classes_per_chunk=4)
    scores = softmax.scores(X, LABELS)
    np.testing.assert_allclose(scores.sum_logits, softmax(X).sum(axis=-1), atol=1e-5)
    assert softmax.bias is None


def test_of_equal_logits_the_lowest_class_is_best_in_chunks_too():
    softmax = Softmax(D, V, kernel_init=nnx.initializers.zeros, classes_per_chunk=3, rngs=nnx.Rngs(0))
    assert not softmax.scores(X, LABELS).best.any()


def test_labels_of_another_vocabulary_are_seen_in_chunks_too():
    labels = jnp.array([V - 1, V, -1])
    label_logit = _softmax(classes_per_chunk=4).scores(X[0, :3], labels).label_logit
    np.testing.assert_array_equal(jnp.isnan(label_logit), [False, True, True])


def _peak_bytes(softmax, x, labels):
    def loss(softmax, x):
        scores = softmax.scores(x, labels)
        return (scores.log_z - scores.label_logit).sum()

    graph, state = nnx.split(softmax)
    compiled = jax.jit(jax.grad(lambda state, x: loss(nnx.merge(graph, state), x), argnums=(0, 1))).lower(state, x)
    as_users_do = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}  # not as other tests
    memory = compiled.compile(as_users_do).memory_analysis()
    return memory.temp_size_in_bytes


def test_chunks_never_have_all_logits():
    many_x, many_labels = jnp.ones((4096, D)), jnp.zeros(4096, jnp.int32)
    logits = 4096 * 1000 * 4
    sizes = {
        name: _peak_bytes(Softmax(D, 1000, **chunks, rngs=nnx.Rngs(0)), many_x, many_labels)
        for name, chunks in {
            "whole": {},
            "classes": {"classes_per_chunk": 50},
            "tokens": {"tokens_per_chunk": 256},
        }.items()
    }
    assert sizes["whole"] >= logits
    assert sizes["classes"] < logits / 4 and sizes["tokens"] < logits / 4


def test_caps_by_hand():
    softmax = Softmax(1, 2, bias=False, logits_abs_max=4.0, rngs=nnx.Rngs(0))
    softmax.kernel[...] = jnp.array([[1.0], [-9.0]])
    np.testing.assert_array_equal(softmax(jnp.ones((1, 1))), [[1, -4]])
    softmax = Softmax(1, 2, bias=False, logits_abs_max=4.0, logits_soft_max=2.0, rngs=nnx.Rngs(0))
    softmax.kernel[...] = jnp.array([[1.0], [-9.0]])
    np.testing.assert_allclose(softmax(jnp.ones((1, 1))), [[2 * np.tanh(0.5), 2 * np.tanh(-2)]], rtol=1e-6)


def test_logits_are_float32_whatever_is_computed_in():
    softmax = _softmax(dtype=jnp.bfloat16)
    assert softmax(X).dtype == jnp.float32
    np.testing.assert_allclose(softmax(X), _softmax()(X), atol=0.05)
    assert logical_axes(softmax) == {"bias": ("vocab",), "kernel": ("vocab", "embed")}


@pytest.mark.parametrize("name", ["logits_abs_max", "logits_soft_max", "classes_per_chunk", "tokens_per_chunk"])
def test_negative_settings_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must be >= 0 \(got -1\)"):
        Softmax(D, V, **{name: -1}, rngs=nnx.Rngs(0))


def test_a_table_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"table must have the shape \(10, 3\) \(got \(3, 10\)\)"):
        Softmax(D, V, table=nnx.Param(jnp.zeros((D, V))), rngs=nnx.Rngs(0))


def test_a_sampled_softmax_has_no_caps():
    candidates = Candidates(jnp.arange(3), jnp.int32(4))
    with pytest.raises(ValueError, match="a sampled softmax has no caps"):
        _softmax(**CAPS).sampled_cross_entropy(X, LABELS, candidates)
