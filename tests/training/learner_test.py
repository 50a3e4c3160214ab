"""The learner's settings: what is refused, which variables it trains, and that it is plain data."""

import pytest

from raylingvo.config import dump, load
from raylingvo.training.grad_norm_tracker import GradNormTracker
from raylingvo.training.learner import ONLY, TASK_LOSS, Learner, by_name, loss_names
from raylingvo.training.optimizers import Accumulator, DynamicAccumulator, Sgd


@pytest.mark.parametrize("rate", [0.0, -0.1, float("nan")])
def test_a_bad_rate_is_refused(rate):
    with pytest.raises(ValueError, match=rf"learning_rate must be > 0 \(got {rate}\)"):
        Learner(learning_rate=rate)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_gradient_norm_to_value": -1.0}, r"clip_gradient_norm_to_value must be >= 0 \(got -1.0\)"),
        ({"grad_norm_to_clip_to_zero": -1.0}, r"grad_norm_to_clip_to_zero must be >= 0 \(got -1.0\)"),
        ({"l2_regularizer_weight": -1.0}, r"l2_regularizer_weight must be >= 0 \(got -1.0\)"),
        (
            {"clip_gradient_norm_to_value": 1.0, "clip_gradient_single_norm_to_value": 2.0},
            r"clip_gradient_norm_to_value and clip_gradient_single_norm_to_value exclude each other \(got 1.0, 2.0\)",
        ),
        (
            {"optimizer": Accumulator(optimizer=DynamicAccumulator(optimizer=Sgd(), min_accum_weight=1.0))},
            r"optimizer must have a DynamicAccumulator outermost: .* \(got one in Accumulator\)",
        ),
        ({"loss_name": "num_rows"}, r"loss_name must be a mean, not a count \(got 'num_rows'\)"),
        ({"bprop_variable_filter": "("}, r"bprop_variable_filter must be a regular expression: .* \(got '\('\)"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Learner(learning_rate=1.0, **settings)


def test_which_variables_it_trains():
    learner = Learner(learning_rate=1.0, bprop_variable_filter="^decoder/|bias", bprop_variable_exclusion="emb$")
    paths = ["decoder/0/kernel", "encoder/bias", "encoder/kernel", "decoder/emb", "my_decoder/kernel"]
    assert [learner.trains(path) for path in paths] == [True, True, False, False, False]
    assert all(Learner(learning_rate=1.0).trains(path) for path in paths)


def test_one_learner_or_several():
    one, two = Learner(learning_rate=1.0), Learner(learning_rate=2.0, loss_name="other")
    assert by_name(one) == {ONLY: one}
    assert loss_names(by_name(one)) == {ONLY: TASK_LOSS}
    assert loss_names(by_name(two)) == {ONLY: "other"}
    assert loss_names(by_name({"a": one, "b": two})) == {"a": "a", "b": "other"}


@pytest.mark.parametrize(
    ("learners", "message"),
    [
        ({}, r"learner must be one, or at least one by name \(got none\)"),
        ({"a/b": Learner(learning_rate=1.0)}, "learner: 'a/b' is not a name of letters, digits and _"),
        (
            {"num_rows": Learner(learning_rate=1.0)},
            r"learner.num_rows.loss_name, by default .* must be a mean, not a count \(got 'num_rows'\)",
        ),
        ({"schedule": Learner(learning_rate=1.0)}, "learner: 'schedule' .* is that of a field"),
    ],
)
def test_bad_names_are_refused(learners, message):
    with pytest.raises(ValueError, match=message):
        by_name(learners)


def test_it_is_plain_data():
    learner = Learner(
        learning_rate=1.0,
        grad_norm_tracker=GradNormTracker(decay=0.9),
        l2_regularizer_weight=0.1,
        skip_lp_regularization="bias$",
        dropped_updates="zero",
    )
    assert load(dump(learner), Learner) == learner
    assert hash(learner) == hash(load(dump(learner), Learner))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.0}, r"decay must be in \(0, 1\) \(got 1.0\)"),
        ({"clip_threshold": -1.0}, r"clip_threshold must be >= 0 \(got -1.0\)"),
    ],
)
def test_a_bad_tracker_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GradNormTracker(**settings)
