import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from raylingvo.models.image.classifier import ImageClassification
from raylingvo.models.image.lenet import LeNet5

TASK = ImageClassification(model=LeNet5())
TRAIN_METRICS = {"loss", "log_pplx", "accuracy", "num_preds"}
EVAL_METRICS = {"loss", "log_pplx", "accuracy", "acc5", "error", "error5", "num_preds"}

evaluate = nnx.jit(TASK.eval_metrics)
decode_on_device = nnx.jit(TASK.decode)


@pytest.fixture(scope="module")
def model():
    return nnx.jit(lambda: TASK.init(nnx.Rngs(0)))()


class FixedLogits(nnx.Module):
    """A model whose logits are its only variable: a row per image."""

    def __init__(self, logits):
        self.logits = nnx.Param(jnp.asarray(logits, jnp.float32))

    def __call__(self, images, *, rng=None):
        return self.logits[...]


def _batch(count, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8),
        "label": rng.integers(0, 10, count).astype(np.int32),
        "weight": np.ones(count, np.float32),
        "id": np.arange(100, 100 + count),
    }


def _padded(batch, rows):
    """The batch with rows of weight 0 after it, whose images and labels are anything."""
    other = _batch(rows, seed=9) | {"weight": np.zeros(rows, np.float32)}
    return {name: np.concatenate([batch[name], other[name]]) for name in batch}


def _decoded(model, batch):
    return jax.device_get(decode_on_device(model, batch))


def _gradients(model, batch):
    """((loss, metrics), gradients) of the training loss."""
    return nnx.jit(nnx.value_and_grad(TASK.loss, has_aux=True))(model, batch, jax.random.key(0))


def test_an_untrained_model_is_about_as_good_as_guessing(model):
    metrics = evaluate(model, _batch(4))
    assert metrics.keys() == EVAL_METRICS
    assert 0.8 * np.log(10) < metrics["loss"][0] < 2.0 * np.log(10)


def test_loss_is_the_training_metric_and_has_its_gradient(model):
    batch = _batch(4)
    (loss, metrics), grads = _gradients(model, batch)
    assert metrics.keys() == TRAIN_METRICS
    assert metrics["loss"] == (loss, 4.0) and metrics["log_pplx"][0] == loss
    assert abs(loss - evaluate(model, batch)["loss"][0]) > 1e-3  # dropout
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_padding_counts_nowhere():
    batch = _batch(6)
    padded = _padded(batch, 3)
    logits = np.random.default_rng(5).normal(size=(9, 10))
    model, padded_model = FixedLogits(logits[:6]), FixedLogits(logits)
    expected = evaluate(model, batch)
    for name, (value, weight) in evaluate(padded_model, padded).items():
        np.testing.assert_allclose(value, expected[name][0], rtol=1e-6, err_msg=name)
        assert weight == expected[name][1], name
    assert TASK.postprocess(_decoded(padded_model, padded), padded) == TASK.postprocess(_decoded(model, batch), batch)


def test_padding_has_no_gradient():
    logits = np.random.default_rng(4).normal(size=(8, 10))
    batch = _batch(4)
    (_, grads), (_, padded_grads) = (
        _gradients(FixedLogits(logits[:4]), batch),
        _gradients(FixedLogits(logits), _padded(batch, 4)),
    )
    np.testing.assert_allclose(padded_grads["logits"][...][:4], grads["logits"][...], rtol=1e-5)
    assert not padded_grads["logits"][...][4:].any()


def test_nan_in_a_padded_row_does_not_spread():
    batch = {"image": None, "label": np.array([0, 0]), "weight": np.array([1, 0], np.float32), "id": np.arange(2)}
    metrics = evaluate(FixedLogits([[2.0, 1, 0], [np.nan] * 3]), batch)
    assert all(np.isfinite(value) for value, _ in metrics.values())


def test_a_batch_of_padding_only_weighs_nothing():
    model = FixedLogits(np.ones((4, 10)))
    batch = _padded(_batch(0), 4)
    metrics = evaluate(model, batch)
    assert metrics.pop("num_preds") == (0.0, 1.0)
    assert all(np.isfinite(value) and weight == 0 for value, weight in metrics.values())
    outputs, metrics = TASK.postprocess(_decoded(model, batch), batch)
    assert outputs == []
    assert metrics == {"correct_top1": (0.0, 0.0), "correct_top5": (0.0, 0.0), "num_samples": (0.0, 1.0)}


def test_weighted_means_over_two_batches_are_those_of_the_whole():
    whole = _batch(8)
    whole["weight"] = np.linspace(0.5, 2, 8, dtype=np.float32)
    logits = np.random.default_rng(6).normal(size=(8, 10))
    parts = [
        evaluate(FixedLogits(logits[rows]), {name: field[rows] for name, field in whole.items()})
        for rows in (slice(0, 3), slice(3, 8))
    ]
    for name, (value, weight) in evaluate(FixedLogits(logits), whole).items():
        total = sum(float(part[name][0] * part[name][1]) for part in parts)
        np.testing.assert_allclose(total, value * weight, rtol=1e-5, err_msg=name)


def test_metrics_by_hand():
    logits = np.array([[9, 5, 4, 3, 2, 1, 0, 0, 0, 0.0]] * 4)  # best 0, then 1, 2, 3, 4
    batch = {"image": None, "label": np.array([0, 4, 5, 0]), "weight": np.array([1, 1, 2, 0], np.float32)}
    metrics = evaluate(FixedLogits(logits), batch)
    log_probs = logits[0] - np.log(np.exp(logits[0]).sum())
    expected = {
        "loss": -(log_probs[0] + log_probs[4] + 2 * log_probs[5]) / 4,
        "accuracy": 0.25,
        "acc5": 0.5,
        "error": 0.75,
        "error5": 0.5,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name][0], value, rtol=1e-6, err_msg=name)
        assert metrics[name][1] == 4.0
    assert metrics["num_preds"] == (3.0, 1.0)


def test_decoding_agrees_with_evaluation():
    batch = _padded(_batch(50), 7)
    model = FixedLogits(np.random.default_rng(3).normal(size=(57, 10)))
    evaluated = evaluate(model, batch)
    outputs, metrics = TASK.postprocess(_decoded(model, batch), batch)
    np.testing.assert_allclose(metrics["correct_top1"], evaluated["accuracy"], rtol=1e-6)
    np.testing.assert_allclose(metrics["correct_top5"], evaluated["acc5"], rtol=1e-6)
    assert metrics["num_samples"] == (50.0, 1.0)
    assert [key for key, _ in outputs] == [str(i) for i in range(100, 150)]
    for (_, output), label in zip(outputs, batch["label"][:50], strict=True):
        assert output["label"] == label
        assert output["prediction"] == output["top5"][0]
        assert len(set(output["top5"])) == 5
        assert output["log_probs"] == sorted(output["log_probs"], reverse=True)
    assert json.loads(json.dumps(outputs)) == [list(pair) for pair in outputs]


def test_log_probs_are_those_of_the_classes():
    logits = np.random.default_rng(0).normal(size=(3, 10))
    decoded = _decoded(FixedLogits(logits), {"image": None})
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_array_equal(decoded["top5"], np.argsort(-logits)[:, :5])
    np.testing.assert_allclose(decoded["log_probs"], -np.sort(-log_probs)[:, :5], rtol=1e-5)


def test_with_fewer_than_five_classes_the_top_five_are_all():
    batch = {"image": None, "label": np.array([2]), "weight": np.ones(1, np.float32)}
    metrics = evaluate(FixedLogits([[3.0, 2, 1]]), batch)
    assert metrics["acc5"][0] == 1.0 and metrics["accuracy"][0] == 0.0
