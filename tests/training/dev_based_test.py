"""The decay that evaluations decide on: Lingvo's values after each of them, and what is refused."""

import numpy as np
import pytest

from raylingvo.experiment import DevBased
from raylingvo.training.dev_based import dev_based


@pytest.mark.data
def test_dev_based_of_lingvo(lingvo_vectors):
    cases = [pair for pair in lingvo_vectors("g_schedules") if pair[0]["spec"]["class"] == "DevBasedSchedule"]
    assert cases
    for case, arrays in cases:
        history = list(zip(arrays["history_steps"].tolist(), arrays["history_values"].tolist(), strict=True))
        # Whatever case["minimize"] is: Lingvo's schedule does not hand it on to what finds the best step.
        config = DevBased(metric="dev/loss", mode="min", **case["spec"]["params"])
        factors = [dev_based(config, history[: i + 1]) for i in range(len(history))]
        np.testing.assert_allclose(factors, arrays["values"], rtol=1e-5)


def config(**settings):
    return DevBased(**{"metric": "dev/loss", "window": 10, "mode": "max"} | settings)


def test_no_history_or_a_metric_that_grows():
    assert dev_based(config(), []) == 1.0
    growing = [(step, float(step)) for step in range(0, 100, 5)]
    assert dev_based(config(), growing) == 1.0
    for num_values, factor in ((2, 1.0), (3, 0.5), (4, 0.5), (5, 0.3), (20, 0.3)):
        assert dev_based(config(mode="min", min_factor=0.3), growing[:num_values][::-1]) == factor


def test_what_is_not_finite_is_worse_than_any_number():
    nan = float("nan")
    assert dev_based(config(), [(0, nan), (5, 1.0), (14, nan)]) == 1.0
    assert dev_based(config(), [(0, nan), (5, 1.0), (15, nan)]) == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "loss"}, r"metric must be DATASET/NAME, such as test/accuracy \(got 'loss'\)"),
        ({"window": 0}, r"window must be >= 1 \(got 0\)"),
        ({"decay": 0.0}, r"decay must be in \(0, 1\] \(got 0.0\)"),
        ({"min_factor": 2.0}, r"min_factor must be in \(0, 1\] \(got 2.0\)"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)
