"""What the pictures show, asked of the figures, and that no sweep, however odd, cannot be drawn."""

import dataclasses
import math

import pytest
import toy_sweep
from matplotlib.colors import to_hex
from matplotlib.image import imread

from raylingvo.tune import pictures
from raylingvo.tune.pictures import PICTURES, draw, metric_by_step, parallel_coordinates, params

NAN = math.nan
SPACES = {
    "learner.learning_rate": "loguniform(1e-4, 1e-1)",
    "model.encoder.dropout": "uniform(0, 0.5)",
    "model.decoder.dropout": "uniform(0, 0.5)",
    "model.layers": "choice(2, 4, 16)",
    "model.norm": "choice(layer, rms, true)",
}
RED = "#d62728"


def trial(number, *values, status="finished", **changed):
    given = {
        "learner.learning_rate": 10.0 ** (-1 - number % 4),
        "model.encoder.dropout": 0.1 * (number % 5),
        "model.decoder.dropout": 0.25,
        "model.layers": (2, 4, 16)[number % 3],
        "model.norm": ("layer", "rms", True)[number % 3],
    }
    return toy_sweep.trial(number, *values, params=given | changed, status=status)


def sweep(*trials, mode="min", spaces=SPACES):
    trials = [dataclasses.replace(t, params={key: t.params[key] for key in spaces}) for t in trials]
    return toy_sweep.sweep(*trials, mode=mode, spaces=spaces)


@pytest.fixture
def twelve():
    return sweep(
        *(trial(i, 3.0, 1.0 + i / 10, status="stopped" if i == 7 else "finished") for i in range(9)),
        trial(9, 2.0, status="failed"),
        trial(10, NAN),
        trial(11, status="pending"),
    )


def words(figure):
    texts = [text.get_text() for axes in figure.axes for text in [*axes.texts, axes.title]]
    return [*texts, *(text.get_text() for legend in figure.legends for text in legend.get_texts())]


def lines_of(axes, color):
    return [line for line in axes.lines if to_hex(line.get_color()) == color]


def test_files_are_pictures(twelve, tmp_path):
    paths = draw(twelve, tmp_path)
    assert [path.name for path in paths] == ["metric_by_step.png", "parallel_coordinates.png", "params.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    for path in paths:
        height, width = imread(path).shape[:2]
        assert 400 < height < width


def test_a_curve_for_each_trial_that_has_a_value_and_the_best_above_all(twelve):
    figure = metric_by_step(twelve)
    curves = {line.get_label(): line for line in figure.axes[0].lines if len(line.get_label()) == 4}
    assert sorted(curves) == [f"{i:04d}" for i in range(10)]
    assert list(curves)[-1] == "0000"
    assert list(curves["0003"].get_ydata()) == [3.0, 1.3]
    assert to_hex(curves["0000"].get_color()) == RED
    assert len({to_hex(curve.get_color()) for curve in curves.values()}) == 10
    assert "best: trial 0000, 1.0000 @ 20" in words(figure)


def test_the_best_of_max_is_the_highest(twelve):
    shown = sweep(trial(0, 0.5), trial(1, 0.75), mode="max")
    assert "best: trial 0001, 0.7500 @ 10" in words(metric_by_step(shown))


def test_few_trials_are_named(twelve):
    assert words(metric_by_step(sweep(trial(0, 2.0), trial(1, 1.0), trial(2, 3.0))))[-3:] == [
        "best: trial 0001, 1.0000 @ 10",
        "0000",
        "0002",
    ]


def test_what_is_not_finite_is_a_gap_and_the_end_of_a_lost_trial_a_cross():
    axes = metric_by_step(sweep(trial(0, 3.0, NAN, 1.0), trial(1, 3.0, 2.0, NAN))).axes[0]
    assert [str(y) for y in next(line for line in axes.lines if line.get_label() == "0000").get_ydata()] == [
        *("3.0", "nan", "1.0")
    ]
    (cross,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert (list(cross.get_xdata()), list(cross.get_ydata())) == ([20], [2.0])


@pytest.mark.parametrize(
    ("values", "mode", "scale"),
    [
        ((3.0, 0.05), "min", "log"),
        ((3.0, 1.0), "min", "linear"),
        ((3.0, -0.05), "min", "linear"),
        ((0.9, 0.001), "max", "linear"),
    ],
)
def test_a_log_scale_where_it_helps(values, mode, scale):
    shown = sweep(trial(0, *values), mode=mode)
    assert metric_by_step(shown).axes[0].get_yscale() == scale
    assert params(shown).axes[0].get_yscale() == "linear"  # of one value
    both = sweep(*(trial(i, value) for i, value in enumerate(values)), mode=mode)
    assert params(both).axes[0].get_yscale() == scale


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_what_is_much_worse_than_most_does_not_flatten_them_but_the_best_is_always_seen(mode, sign):
    values = [sign * (1 + i / 10) for i in range(12)]
    for odd, inside in ((sign * 1e9, False), (-sign * 1e9, True)):
        low, high = metric_by_step(sweep(*map(trial, range(13), [*values, odd]), mode=mode)).axes[0].get_ylim()
        assert bool(low <= odd <= high) is inside
        assert low <= min(values) and max(values) <= high


def test_axes_of_each_parameter_and_the_metric(twelve):
    axes = parallel_coordinates(twelve).axes[0]
    names = [text.get_text() for text in axes.texts if text.get_position()[1] > 1]
    assert names == ["learning_rate", "encoder.\ndropout", "decoder.\ndropout", "layers", "norm", "test/loss"]
    labels = [[text.get_text() for text in axes.texts if getattr(text, "xy", (None,))[0] == x] for x in range(6)]
    assert labels[0] == ["0.0001", "0.001", "0.01", "0.1"]
    assert labels[2:5] == [["0.25"], ["2", "4", "16"], ["layer", "rms", "true"]]
    (best,) = lines_of(axes, RED)
    assert list(best.get_xdata()) == [0, 1, 2, 3, 4, 5]
    assert list(best.get_ydata()) == pytest.approx([1.0, 0.0, 0.5, 1 / 6, 1 / 6, 0.0])
    paths = [line for line in axes.lines if len(line.get_xdata()) == 6]
    assert len(paths) == 9
    assert len([line for line in axes.lines if len(line.get_xdata()) == 5]) == 2  # without a value: 9, 10
    # Decades are equally far apart.
    assert sorted({round(path.get_ydata()[0], 6) for path in paths}) == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_a_panel_for_each_parameter(twelve):
    figure = params(twelve)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == ["learning_rate", "encoder.dropout", "decoder.dropout", "layers", "norm"]
    assert [axes.get_xscale() for axes in panels.values()] == ["log", *["linear"] * 4]
    axes = panels["encoder.dropout"]
    marks = {mark: [line for line in axes.lines if line.get_marker() == mark] for mark in "*ox"}
    assert [len(lines) for lines in marks.values()] == [1, 8, 2]
    assert sorted(line.get_ydata()[0] for line in marks["o"]) == pytest.approx([1.1 + i / 10 for i in range(8)])
    assert sorted(line.get_xdata()[0] for line in marks["x"]) == pytest.approx([0.0, 0.4])
    assert sum(line.get_markerfacecolor() == "none" for line in marks["o"]) == 1
    assert [label.get_text() for label in panels["norm"].get_xticklabels()] == ["layer", "rms", "true"]
    jittered = {line.get_xdata()[0] for line in panels["norm"].lines if line.get_marker() in "*o"}
    assert len(jittered) == 9  # of three categories
    assert words(figure)[-3:] == ["best: trial 0000, 1.0000 @ 20", "stopped early", "failed or not finite"]


def test_crosses_lie_below_all_points(twelve):
    axes = params(twelve).axes[0]
    low, high = axes.get_ylim()
    lowest = min(line.get_ydata()[0] for line in axes.lines if line.get_marker() in "*o")
    assert (lowest - low) / (high - low) > 0.1  # crosses: at 0.04


def test_long_names_that_begin_and_end_alike_are_told_apart():
    names = [f"gs://bucket/some/long/path/wpm-{size}k.model" for size in (16, 32)]
    short = pictures._short_labels([*names, "a short one", "an-other-very-long-name"])
    assert short[2:] == ["a short one", "an-oth…g-name"]
    assert "16" in short[0] and "32" in short[1]
    assert max(map(len, short)) <= 16


TWELVE = {f"model.part_{i}.a_rather_long_name_of_a_parameter": "uniform(0, 1)" for i in range(12)}
ODD = {
    "no trials": lambda: sweep(),
    "no parameters": lambda: sweep(trial(0, 1.0), trial(1, 2.0), spaces={}),
    "no value yet": lambda: sweep(trial(0, status="running"), trial(1, status="pending")),
    "all failed": lambda: sweep(trial(0, 1.0, status="failed"), trial(1, status="failed"), trial(2, NAN)),
    "constant": lambda: sweep(*(trial(i, 0.0, **{"learner.learning_rate": 0.1}) for i in range(3))),
    "what is no formula and no glyph": lambda: sweep(
        trial(0, 1.0, **{"model.norm": "$x_{$"}), trial(1, 2.0, **{"model.norm": "声" * 30})
    ),
    "mixed": lambda: sweep(
        *(
            trial(i, float(i), **{"model.encoder.dropout": value, "learner.learning_rate": -1.0})
            for i, value in enumerate([None, 1, 1.5, "a", math.inf, True])
        )
    ),
    "infinite": lambda: sweep(*(trial(i, 1.0, **{"model.encoder.dropout": math.inf}) for i in range(2))),
    "many categories": lambda: sweep(*(trial(i, 1.0, **{"model.norm": f"n{i}"}) for i in range(40))),
    "twelve": lambda: sweep(
        *(trial(i, 1.0, **{key: (i + j) / 9 for j, key in enumerate(TWELVE)}) for i in range(9)), spaces=TWELVE
    ),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_odd_sweeps_are_drawn(odd, tmp_path):
    assert len(draw(ODD[odd](), tmp_path)) == len(PICTURES)


@pytest.mark.parametrize("make", PICTURES.values())
def test_that_there_is_nothing_yet_is_said(make):
    assert "no trial has a value yet" in words(make(sweep(trial(0, status="running"))))


def test_titles_and_labels_of_twelve_parameters_do_not_overlap():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for make in (parallel_coordinates, params):
        figure = make(ODD["twelve"]())
        FigureCanvasAgg(figure).draw()
        texts = [text for axes in figure.axes for text in [*axes.texts, axes.title]]
        for axes in figure.axes:
            low, high = axes.get_xlim()
            texts += [text for text in axes.get_xticklabels() if low <= text.get_position()[0] <= high]
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
        assert len(boxes) > 30
        assert [(a, b) for i, (a, box) in enumerate(boxes) for b, other in boxes[:i] if box.overlaps(other)] == []
