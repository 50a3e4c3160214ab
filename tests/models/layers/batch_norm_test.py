"""BatchNorm: Lingvo's values, and what padding and training do to its statistics."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from layer_gradients import assert_grad, assert_output, outputs_and_grads

from raylingvo.models.layers.batch_norm import BatchNorm

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(2.0, 3.0, size=(3, 4, 2, 5)), jnp.float32)
PADDINGS = jnp.asarray(np.arange(4) >= np.array([[4], [2], [0]]), jnp.float32)
NAMES = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "variance": "moving_variance"}


def layer_of(params, features=5):
    p = dict(params)
    one, zero = p.pop("gamma_one_init", False), p.pop("gamma_zero_init", False)
    options = {"direct_scale": one or zero, "initial_scale": 0.0 if zero else 1.0}
    if p.pop("use_moving_avg_in_training", False):
        options |= {"statistics": "moving", "affine": False}
    if p.pop("freeze_bn_stats", False):
        options |= {"statistics": "frozen"}
    options["zero_padded"] = p.pop("set_padded_output_to_zero", True)
    for way in (
        "enable_cross_replica_sum_on_tpu",
        "use_fused_batch_norm_for_eval",
        "add_stats_to_moving_average_variables",
    ):
        p.pop(way, None)  # the same numbers
    return BatchNorm(features, rngs=nnx.Rngs(0), **options, **p)


def test_batch_norm_is_lingvos(lingvo_vectors):
    cases = [case for case in lingvo_vectors("i_layers") if case[0]["layer"] == "BatchNormLayer"]
    assert len(cases) >= 4
    for case, arrays in cases:
        layer = layer_of(case["params"])
        for ours, theirs in NAMES.items():
            assert hasattr(layer, ours) == (f"w_{theirs}" in arrays)
            if hasattr(layer, ours):
                getattr(layer, ours)[...] = jnp.asarray(arrays[f"w_{theirs}"])
        definition, params, rest = nnx.split(layer, nnx.Param, ...)
        paddings = jnp.asarray(arrays["in_paddings"])[..., 0] if "in_paddings" in arrays else None

        def run(params, x, definition=definition, rest=rest, paddings=paddings, training=not case["eval_mode"]):
            layer = nnx.merge(definition, params, rest, copy=True)
            y = layer(x, paddings, training=training)
            return y, (layer.mean[...], layer.variance[...])

        y, (mean, variance), (grads, x) = outputs_and_grads(
            run, (params, jnp.asarray(arrays["in_x"])), jnp.asarray(arrays["fix_y"])
        )
        assert_output(y, arrays["out_y"], case["id"])
        for name, value in {"mean": mean, "variance": variance}.items():
            if f"post_w_moving_{name}" in arrays:
                np.testing.assert_allclose(value, arrays[f"post_w_moving_{name}"], atol=2e-5, err_msg=case["id"])
        assert_grad(x, arrays["gin_x"], case["id"])
        for name, grad in grads.items():
            assert_grad(grad[...], arrays[f"gw_{NAMES[name]}"], case["id"])


def test_padding_counts_neither_in_the_result_nor_in_the_statistics():
    padded = PADDINGS[:, :, None, None] > 0
    first, second = layer_of({}), layer_of({})
    y = first(X, PADDINGS, training=True)
    np.testing.assert_array_equal(y, second(jnp.where(padded, 1e3, X), PADDINGS, training=True))
    np.testing.assert_array_equal(first.variance[...], second.variance[...])
    assert (jnp.where(padded, y, 0) == 0).all()
    kept = np.asarray(X)[np.asarray(PADDINGS) == 0].reshape(-1, 5)
    np.testing.assert_allclose(first.mean[...], 0.001 * kept.mean(0), atol=1e-6)
    np.testing.assert_allclose(first.variance[...], 0.999 + 0.001 * kept.var(0), atol=1e-6)


def test_without_padding_each_channel_is_normal():
    y = layer_of({})(X, training=True)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(y.var((0, 1, 2)), 1, atol=1e-3)


def test_a_batch_of_nothing_but_padding_is_finite():
    layer = layer_of({})
    assert jnp.isfinite(layer(X, jnp.ones((3, 4)), training=True)).all()
    assert jnp.isfinite(layer.variance[...]).all()


def test_evaluation_and_frozen_statistics_use_the_moving_averages_and_leave_them():
    for layer, training in ((layer_of({}), False), (layer_of({"freeze_bn_stats": True}), True)):
        layer.mean[...], layer.variance[...] = jnp.full(5, 2.0), jnp.full(5, 4.0)
        y = layer(X, training=training)
        np.testing.assert_allclose(y, (np.asarray(X) - 2) / np.sqrt(4.001), atol=1e-5)
        assert (layer.mean[...] == 2).all()


def test_a_scale_may_begin_at_0():
    layer = layer_of({"gamma_zero_init": True})
    assert (layer.scale[...] == 0).all()
    assert (layer(X, training=True) == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.5}, r"decay must be in \[0, 1\] \(got 1.5\)"),
        ({"epsilon": -1.0}, r"epsilon must be > 0 \(got -1.0\)"),
        ({"statistics": "none"}, r"statistics must be one of batch, moving, frozen \(got 'none'\)"),
    ],
)
def test_what_is_wrong_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        BatchNorm(5, rngs=nnx.Rngs(0), **options)
