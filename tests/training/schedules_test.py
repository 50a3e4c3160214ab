"""Schedules: Lingvo's values at many steps, and what holds at the steps between."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raylingvo.training.schedules import Constant, Continuous, LinearRampupExponentialDecay


def values(schedule, steps):
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.array(steps, jnp.int32)))


def from_lingvo(spec):
    """Our schedule, and the factor between it and Lingvo's; None if we do not have it."""
    p = spec["params"]
    match spec["class"]:
        case "Constant":
            return Constant(value=p["value"]), 1.0
        case "ConstantOne":
            return Constant(), 1.0
        case "ContinuousSchedule":
            ours = Continuous(start_step=p["start_step"], half_life_steps=p["half_life_steps"], min=p["min"])
            return ours, p["initial_value"]
        case "LinearRampupExponentialDecay":
            return LinearRampupExponentialDecay(**p), 1.0
        case _:
            return None


@pytest.mark.data
def test_values_of_lingvo(lingvo_vectors):
    seen = set()
    for case, arrays in lingvo_vectors("g_schedules"):
        if ours := from_lingvo(case["spec"]):
            schedule, factor = ours
            actual = factor * values(schedule, arrays["steps"])
            np.testing.assert_allclose(actual, arrays["values"], rtol=1e-5, atol=1e-7, err_msg=case["id"])
            seen.add(case["spec"]["class"])
    assert seen == {"Constant", "ConstantOne", "ContinuousSchedule", "LinearRampupExponentialDecay"}


def test_continuous_of_the_reference():
    schedule = Continuous(start_step=1000, half_life_steps=100, min=0.1)
    steps = [0, 500, 1000, 1100, 1200, 1300, 1400, 5000]
    np.testing.assert_allclose(values(schedule, steps), [1, 1, 1, 0.5, 0.25, 0.125, 0.1, 0.1], rtol=1e-6)


def test_rampup_and_decay():
    schedule = LinearRampupExponentialDecay(warmup=100, decay_start=1000, decay_end=3000, min=0.01, max=4.0)
    # Half of the decay is the geometric mean of both ends.
    steps = [0, 25, 100, 1000, 2000, 3000, 10**6]
    np.testing.assert_allclose(values(schedule, steps), [0, 1, 4, 4, 0.2, 0.01, 0.01], rtol=1e-5)


def test_no_warmup_starts_at_the_maximum():
    """Lingvo's ..ScaledByNumSplitSchedule on one split, as in its LeNet5 recipe."""
    schedule = LinearRampupExponentialDecay(warmup=0, decay_start=100_000, decay_end=1_000_000, min=0.1)
    steps = [0, 1, 50, 100, 100_000, 550_000, 1_000_000, 4_000_000]
    np.testing.assert_allclose(values(schedule, steps), [1, 1, 1, 1, 1, 0.1**0.5, 0.1, 0.1], rtol=1e-5)


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(value=0.3),
        Continuous(start_step=10, half_life_steps=7, min=0.2),
        LinearRampupExponentialDecay(warmup=0, decay_start=5, decay_end=30, min=0.1),
    ],
)
def test_without_warmup_the_rate_never_rises(schedule):
    rates = values(schedule, range(60))
    assert (np.diff(rates) <= 0).all()
    assert (rates > 0).all()
    assert schedule(jnp.int32(3)).dtype == jnp.float32
    assert schedule(jnp.int32(3)).shape == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Continuous(half_life_steps=0), r"half_life_steps must be > 0 \(got 0\)"),
        (
            lambda: LinearRampupExponentialDecay(warmup=9, decay_start=5, decay_end=30, min=0.1),
            r"expected 0 <= warmup <= decay_start < decay_end \(got 9, 5, 30\)",
        ),
        (
            lambda: LinearRampupExponentialDecay(warmup=0, decay_start=5, decay_end=5, min=0.1),
            r"expected 0 <= warmup <= decay_start < decay_end \(got 0, 5, 5\)",
        ),
        (
            lambda: LinearRampupExponentialDecay(warmup=0, decay_start=5, decay_end=6, min=0.0),
            r"expected 0 < min <= max \(got 0.0, 1.0\)",
        ),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
