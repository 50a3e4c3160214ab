"""The same batches give the same means in whatever order they come; what has weight 0 does not count."""

import json
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raylingvo.metrics.means import WeightedMeans, accumulate, to_means, zeros_like_metrics

# What a task reports for batches of 256 rows, the last one padded.
ROWS = [256, 256, 256, 256, 256, 101]


def reported(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return [
        {
            "loss": (np.float32(rng.normal() * scale), np.float32(n)),
            "accuracy": (np.float32(rng.random()), np.float32(n)),
            "num_preds": (np.float32(n), np.float32(1)),
        }
        for n in ROWS
    ]


def means(batches):
    accumulator = WeightedMeans()
    for metrics in batches:
        accumulator.add(metrics)
    return accumulator


def test_means_are_weighted_and_counts_are_totals():
    result = means(reported(0)).result()
    values = [float(m["accuracy"][0]) for m in reported(0)]
    assert result["accuracy"] == pytest.approx(np.average(values, weights=ROWS), rel=1e-15)
    assert result["num_preds"] == sum(ROWS)
    assert list(result) == ["loss", "accuracy", "num_preds"]
    assert all(type(value) is float for value in result.values())


@pytest.mark.parametrize("scale", [1.0, 1e30])
@pytest.mark.parametrize("seed", range(5))
def test_any_order_gives_the_same_bits(seed, scale):
    batches = reported(seed, scale)
    expected = means(batches).result()
    rng = np.random.default_rng(seed + 100)
    for _ in range(10):
        assert means(batches[i] for i in rng.permutation(len(batches))).result() == expected


def test_weight_zero_does_not_count_even_if_nan():
    batches = reported(0)
    padding = {name: (np.float32("nan"), np.float32(0)) for name in batches[0]}
    assert means([padding, *batches, padding]).result() == means(batches).result()


def test_a_mean_of_no_weight_is_absent_and_a_count_is_zero():
    result = means([{"accuracy": (float("nan"), 0.0), "num_preds": (5.0, 0.0)}]).result()
    assert result == {"num_preds": 0.0}
    assert WeightedMeans().result() == {}
    json.dumps(result, allow_nan=False)


def test_real_infinities_and_nans_stay():
    inf = float("inf")
    assert means([{"loss": (1.0, 1.0)}, {"loss": (inf, 1.0)}]).result() == {"loss": inf}
    assert math.isnan(means([{"loss": (inf, 1.0)}, {"loss": (-inf, 1.0)}]).result()["loss"])
    assert math.isnan(means([{"loss": (float("nan"), 1.0)}, {"loss": (1.0, 1.0)}]).result()["loss"])


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_bad_weights_are_refused(weight):
    with pytest.raises(ValueError, match="weight of loss must be finite and >= 0"):
        WeightedMeans().add({"loss": (1.0, weight)})


def test_jax_scalars_and_pickling():
    accumulator = means([{"loss": (jnp.float32(2), jnp.float32(3))}, {"loss": (4, 1)}])
    assert pickle.loads(pickle.dumps(accumulator)).result() == {"loss": 2.5}


def test_device_totals_agree_with_the_host():
    batches = reported(0)
    step = jax.jit(accumulate, donate_argnums=0)
    totals = zeros_like_metrics(batches[0])
    for metrics in batches:
        totals = step(totals, metrics)
    assert all(x.dtype == jnp.float32 and x.shape == () for x in jax.tree.leaves(totals))
    assert to_means(jax.device_get(totals)) == pytest.approx(means(batches).result(), rel=1e-5)


def test_device_totals_ignore_weight_zero():
    metrics = {"loss": (jnp.float32("nan"), jnp.float32(0)), "num_preds": (jnp.float32(0), jnp.float32(1))}
    totals = accumulate(zeros_like_metrics(metrics), metrics)
    assert to_means(totals) == {"num_preds": 0.0}
    totals = accumulate(totals, {"loss": (2.0, 3.0), "num_preds": (3.0, 1.0)})
    assert to_means(totals) == {"loss": 2.0, "num_preds": 3.0}


def test_other_names_are_refused():
    with pytest.raises(ValueError, match=r"metrics must be among loss \(got accuracy\)"):
        accumulate(zeros_like_metrics({"loss": None}), {"accuracy": (1.0, 1.0)})
