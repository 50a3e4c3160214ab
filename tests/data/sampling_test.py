"""Shares over the steps: as they are asked for, exact about what came before, and the same from any step on."""

import numpy as np
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from raylingvo.data.mixing import SampleBatches
from raylingvo.data.order import part_seed
from raylingvo.data.sampling import (
    ConstantShares,
    ExponentialRamp,
    RoundRobin,
    SampledOrder,
    SigmoidRamp,
    Stages,
)

RAMP = ExponentialRamp(start=(1, 0, 3), end=(0, 1, 0), rate=1e-4)
STAGES = Stages(boundaries=(7, 5000), samplings=(RoundRobin(), ConstantShares(weights=(0, 2, 0)), RAMP))
SAMPLINGS = [ConstantShares(weights=(1, 2, 5)), RAMP, SigmoidRamp(start=(1, 1, 2), end=(1, 0, 0), rate=2e-4), STAGES]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda sampling: type(sampling).__name__)
def test_the_shares_are_those_asked_for(sampling):
    steps = np.arange(60_000)
    shares = sampling.shares(steps, 3)
    shares = shares / shares.sum(axis=1, keepdims=True)
    drawn = SampledOrder(sampling, 3, seed=5).at(steps) % 3
    for start in range(0, 60_000, 10_000):
        part = slice(start, start + 10_000)
        found = np.bincount(drawn[part], minlength=3) / 10_000
        np.testing.assert_allclose(found, shares[part].mean(axis=0), atol=0.02)  # four standard deviations
    assert not (shares[steps, drawn] == 0).any()


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda sampling: type(sampling).__name__)
@given(positions=st.lists(st.integers(0, 20_000), min_size=1, max_size=5))
def test_each_dataset_goes_on_where_it_was(sampling, positions):
    whole = SampledOrder(sampling, 3, seed=1).at(np.arange(max(positions) + 1))
    for s in range(3):
        of_s = whole[whole % 3 == s] // 3
        np.testing.assert_array_equal(of_s, np.arange(len(of_s)))
    np.testing.assert_array_equal(SampledOrder(sampling, 3, seed=1).at(np.array(positions)), whole[positions])


def test_the_formulas():
    steps = np.array([0, 1000, 10_000])
    ramp = ExponentialRamp(start=(1, 0), end=(0, 1), rate=1e-3)
    np.testing.assert_allclose(ramp.shares(steps, 2)[:, 1], 1 - np.exp(-steps / 1000))
    sigmoid = SigmoidRamp(start=(3, 1), end=(1, 3), rate=1e-3)
    np.testing.assert_allclose(sigmoid.shares(steps, 2)[:, 1], 0.25 + 0.5 * (2 / (1 + np.exp(-steps / 1000)) - 1))
    np.testing.assert_array_equal(RoundRobin().shares(np.arange(4), 3).argmax(axis=1), [0, 1, 2, 0])
    np.testing.assert_array_equal(SampledOrder(RoundRobin(), 3, 0).at(np.arange(7)), [0, 1, 2, 3, 4, 5, 6])


def test_batches_are_those_of_the_datasets():
    datasets = (toy.Numbers(size=30), toy.Numbers(size=50))
    batches = SampleBatches(datasets=datasets, sampling=ConstantShares(weights=(1, 2))).train_batches(4, 3)
    parts = [dataset.train_batches(4, part_seed(3, s)) for s, dataset in enumerate(datasets)]
    counts = [0, 0]
    for k in range(50):
        (source,) = np.unique(batches[k]["source_id"])
        for name, values in parts[source][counts[source]].items():
            np.testing.assert_array_equal(batches[k][name], values)
        counts[source] += 1
    assert min(counts) > 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ConstantShares(weights=(0, 0)),
            r"weights must be finite numbers >= 0, and not all 0 \(got \[0, 0\]\)",
        ),
        (lambda: ExponentialRamp(start=(1,), end=(1, 2), rate=1), "end must have a number for each of 1 datasets"),
        (lambda: SigmoidRamp(start=(1,), end=(1,), rate=0), r"rate must be > 0 \(got 0\)"),
        (lambda: Stages(boundaries=(), samplings=()), "boundaries must be one fewer than the 0 samplings"),
        (
            lambda: Stages(boundaries=(5, 5), samplings=(RoundRobin(),) * 3),
            r"boundaries must be > 0 and increasing \(got \[5, 5\]\)",
        ),
        (
            lambda: SampleBatches(datasets=(toy.Numbers(size=3),), sampling=STAGES),
            "weights must have a number for each of 1 datasets",
        ),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
