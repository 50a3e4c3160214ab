import subprocess
import sys

import pytest
from matplotlib.image import imread

from raylingvo.errors import RequestError
from raylingvo.monitor import plots
from raylingvo.monitor.metrics_log import MetricsLog
from raylingvo.monitor.plots import plot_runs
from raylingvo.monitor.runs import load_run


@pytest.fixture
def drawn(monkeypatch):
    """The figure behind the last PNG."""
    figures = []
    draw = plots._draw

    def record(*args):
        figures.append(draw(*args))
        return figures[-1]

    monkeypatch.setattr(plots, "_draw", record)
    return lambda: figures[-1]


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}


def test_a_panel_for_each_metric_and_a_curve_for_each_run_and_dataset(make_logdir, tmp_path, drawn):
    runs = [load_run(make_logdir(name)) for name in ("x/one", "x/two", "x/three")]
    out = plot_runs(runs, tmp_path / "new" / "curves.png")
    height, width = imread(out).shape[:2]
    assert width > 400 < height
    shown = panels(drawn())
    assert list(shown) == ["loss", "accuracy", "learning_rate"]  # counts are left out
    assert len(shown["loss"].lines) == 3 * 2  # train, test
    assert len(shown["accuracy"].lines) == 3 * 2  # test, test (decode)
    assert len(shown["learning_rate"].lines) == 3
    assert [text.get_text() for text in drawn().legends[0].get_texts()] == ["one", "two", "three"]
    assert [text.get_text() for text in shown["accuracy"].get_legend().get_texts()] == ["test", "test (decode)"]


def test_scores_of_decoders_have_panels_of_their_own(make_logdir, tmp_path, drawn):
    logdir = make_logdir("a")
    for dataset, gain in (("dev", 1.0), ("test", 0.9)):
        with MetricsLog(logdir / f"decode_{dataset}") as log:
            for step in (50, 100, 150):
                bleu = gain * step / 5
                log.write(step, {"sacrebleu": bleu, "corpus_bleu": bleu / 100, "chrf": bleu + 20})
    plot_runs([load_run(logdir)], tmp_path / "a.png")
    shown = panels(drawn())
    assert list(shown)[:5] == ["loss", "accuracy", "sacrebleu", "corpus_bleu", "chrf"]
    for name, last in (("sacrebleu", 30.0), ("corpus_bleu", 0.3), ("chrf", 50.0)):
        dev, test = shown[name].lines
        assert list(dev.get_xdata()) == list(test.get_xdata()) == [50, 100, 150]
        assert dev.get_ydata()[-1] == pytest.approx(last)
        assert dev.get_color() != test.get_color()
        assert [text.get_text() for text in shown[name].get_legend().get_texts()] == ["dev (decode)", "test (decode)"]
    plot_runs([load_run(logdir)], tmp_path / "b.png", ["dev/sacrebleu"])
    assert list(panels(drawn())) == ["sacrebleu"]


def test_curves_are_the_recorded_values(make_logdir, tmp_path, drawn):
    run = load_run(make_logdir("a"))
    plot_runs([run], tmp_path / "a.png", ["test/loss"])
    (line,) = panels(drawn())["loss"].lines
    assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) == {
        record["step"]: record["loss"] for record in run.series["eval_test"]
    }


@pytest.mark.parametrize(("values", "scale"), [((3.0, 0.05), "log"), ((3.0, 1.0), "linear"), ((3.0, -0.05), "linear")])
def test_a_loss_over_decades_has_a_log_scale(make_logdir, tmp_path, drawn, values, scale):
    logdir = make_logdir("a")
    lines = [f'{{"step": {i}, "time": 0.0, "loss": {value}}}\n' for i, value in enumerate(values)]
    (logdir / "train" / "metrics.jsonl").write_text("".join(lines))
    plot_runs([load_run(logdir)], tmp_path / "a.png", ["train/loss"])
    assert panels(drawn())["loss"].get_yscale() == scale


def test_null_values_are_gaps(make_logdir, tmp_path, drawn):
    logdir = make_logdir("a")
    lines = [f'{{"step": {i}, "time": 0.0, "loss": {value}}}\n' for i, value in enumerate(("1.0", "null", "0.5"))]
    (logdir / "train" / "metrics.jsonl").write_text("".join(lines))
    plot_runs([load_run(logdir)], tmp_path / "a.png", ["train/loss"])
    (line,) = panels(drawn())["loss"].lines
    assert [str(y) for y in line.get_ydata()] == ["1.0", "nan", "0.5"]


@pytest.mark.parametrize("name", ["loss", "train/loss", "eval_test/accuracy", "test/accuracy", "num_preds"])
def test_ways_to_name_a_metric(make_logdir, tmp_path, drawn, name):
    plot_runs([load_run(make_logdir("a"))], tmp_path / "a.png", [name])
    assert list(panels(drawn())) == [name.rpartition("/")[2]]


def test_an_unknown_metric_is_refused_with_the_closest(make_logdir, tmp_path):
    with pytest.raises(RequestError, match="'acuracy'; closest: accuracy") as caught:
        plot_runs([load_run(make_logdir("a"))], tmp_path / "a.png", ["loss", "acuracy"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.png").exists()


def test_runs_without_metrics_are_refused(make_logdir, tmp_path):
    logdir = make_logdir("a")
    for path in logdir.glob("*/metrics.jsonl"):
        path.unlink()
    with pytest.raises(RequestError, match="no metrics to plot"):
        plot_runs([load_run(logdir)], tmp_path / "a.png")


def test_a_file_that_cannot_be_written_is_named(make_logdir, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"file/a\.png cannot be written"):
        plot_runs([load_run(make_logdir("a"))], tmp_path / "file" / "a.png")


def test_many_runs_have_many_colors(make_logdir, tmp_path, drawn):
    runs = [load_run(make_logdir(str(i), scale=i + 1)) for i in range(12)]
    plot_runs(runs, tmp_path / "a.png", ["train/loss"])
    assert len({line.get_color() for line in panels(drawn())["loss"].lines}) == 12


def test_the_package_is_light():
    script = "import sys, raylingvo.monitor.plots, raylingvo.monitor.runs, raylingvo.monitor.live\n"
    script += "print({'matplotlib', 'tensorboardX', 'tensorflow', 'jax', 'ray'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
