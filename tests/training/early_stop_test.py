"""Early stopping as a function of the history of a metric."""

import itertools
import math

import pytest

from raylingvo.experiment import EarlyStop
from raylingvo.training.early_stop import stop_reason


def config(**changes):
    return EarlyStop(**{"metric": "test/loss", "mode": "min", "window": 30} | changes)


def test_no_evaluation_no_stop():
    assert stop_reason(config(), []) is None


def test_it_goes_on_while_the_metric_improves():
    history = [(step, 1 / step) for step in range(10, 1000, 10)]
    assert stop_reason(config(), history) is None
    assert stop_reason(config(mode="max"), history) is not None


def test_it_stops_when_the_best_is_more_than_a_window_ago():
    history = [(10, 2.0), (20, 1.0), *((step, 1.5) for step in range(30, 60, 10))]
    assert stop_reason(config(), history) is None  # exactly the window is not more than it
    assert stop_reason(config(), [*history, (60, 1.0)]) == (
        "early stop: test/loss has not improved on 1 (step 20) by more than 0 in 40 steps"
    )


@pytest.mark.parametrize(("tolerance", "best"), [(0.0, 50), (0.05, 50), (0.15, 50), (0.25, 40), (10.0, 10)])
def test_an_improvement_within_the_tolerance_is_none(tolerance, best):
    # 0.1 better at each evaluation: with a tolerance of 0.15 every second one counts, with 0.25 every third.
    history = [(10, 1.0), (20, 0.9), (30, 0.8), (40, 0.7), (50, 0.6), (200, 0.6)]
    assert f"(step {best})" in str(stop_reason(config(tolerance=tolerance), history))


def test_never_before_min_steps():
    history = [(10, 1.0), (100, 2.0)]
    assert stop_reason(config(min_steps=101), history) is None
    assert stop_reason(config(min_steps=100), history) is not None


def test_maximising_mirrors_minimising():
    history = [(10, 0.3), (20, 0.9), (30, 0.5), (60, 0.8)]
    mirrored = [(step, -value) for step, value in history]
    for tolerance, window in itertools.product([0.0, 0.2, 0.7], [10, 39, 40, 49, 50]):
        settings = {"tolerance": tolerance, "window": window}
        up, down = stop_reason(config(mode="max", **settings), history), stop_reason(config(**settings), mirrored)
        assert (up is None) == (down is None)


def test_order_and_repetition_do_not_matter():
    history = [(10, 2.0), (20, 1.0), (40, 1.5), (60, 1.2)]
    expected = stop_reason(config(), history)
    assert expected is not None
    for order in itertools.permutations(history):
        assert stop_reason(config(), [*order, *order[:2]]) == expected


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_run_that_diverges_stops(mode):
    good = [(10, 2.0), (20, 2.0 + (1 if mode == "max" else -1))]
    nan = [(step, math.nan) for step in (30, 40, 50)]
    assert stop_reason(config(mode=mode), [*good, *nan]) is None
    assert "(step 20)" in str(stop_reason(config(mode=mode), [*good, *nan, (60, math.nan)]))


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_run_that_was_never_finite_stops_after_a_window(mode):
    history = [(step, math.nan) for step in (10, 20, 30, 40)]
    assert stop_reason(config(mode=mode), history) is None
    assert stop_reason(config(mode=mode), [*history, (50, math.nan)]) == (
        "early stop: test/loss has not been finite from step 10 to 50"
    )
    assert stop_reason(config(mode=mode, tolerance=1e9), [*history, (50, 1e30)]) is None  # any number is better
