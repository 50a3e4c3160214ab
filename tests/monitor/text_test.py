import math

import pytest

from raylingvo.monitor import text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0.0, "0.0000"),
        (0.25747, "0.2575"),
        (1.0, "1.0000"),
        (27.3456, "27.35"),
        (-12.3, "-12.30"),
        (2980.4, "2980"),
        (0.00012345, "0.000123"),
        (3.2e-5, "3.2e-05"),
        (4.2e9, "4.2e+09"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_number(value, shown):
    assert text.number(value) == shown


def test_counts_are_whole():
    assert text.metric("num_preds", 360.0) == "360"
    assert text.metric("num_preds", None) == "-"
    assert text.metric("accuracy", 0.5) == "0.5000"


def test_the_most_telling_metric_comes_first_and_counts_last():
    assert text.telling(["num_preds", "zeta", "log_pplx", "loss", "accuracy"]) == [
        "accuracy",
        "loss",
        "log_pplx",
        "zeta",
        "num_preds",
    ]


def test_translations_are_told_by_their_scores():
    names = ["chrf", "corpus_bleu", "log_pplx", "loss", "num_samples_in_batch", "sacrebleu"]
    assert text.telling(names) == ["sacrebleu", "corpus_bleu", "chrf", "loss", "log_pplx", "num_samples_in_batch"]


@pytest.mark.parametrize(("value", "shown"), [(None, "-"), (0.0456, "0.046"), (11.64, "11.6"), (2980.11, "2980")])
def test_rate(value, shown):
    assert text.rate(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(0.31, "0.3 s"), (12.4, "12 s")])
def test_seconds(value, shown):
    assert text.seconds(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0:00:00"), (83.9, "0:01:23"), (86400, "1 day 0:00:00"), (183845, "2 days 3:04:05")]
)
def test_duration(value, shown):
    assert text.duration(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (37_000_000, "37.0 MB"), (2.5e11, "250 GB"), (2.5e15, "2500 TB")],
)
def test_size(value, shown):
    assert text.size(value) == shown


def test_count():
    assert [text.count(n, "step") for n in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
