"""Curves of one or several runs as one PNG."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raylingvo.errors import RequestError
from raylingvo.monitor import text
from raylingvo.monitor.runs import Run, better, labels, metrics_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DECADES_FOR_LOG_SCALE = 1.5
_ROLES = ("train", "eval", "decode")
_PANEL_INCHES = (4.8, 3.2)
# One look for each dataset of a panel; training, with many more points, is drawn thin and without markers.
_LOOKS = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Curve:
    run: int  # position in the list of runs
    place: str  # train, eval_<dataset>, decode_<dataset>
    metric: str
    steps: Sequence[int]
    values: Sequence[float]  # NaN: a gap

    @property
    def dataset(self) -> str:
        """How a person calls the place: train, test, test (decode)."""
        role, _, dataset = self.place.partition("_")
        return {"train": "train", "eval": dataset}.get(role, f"{dataset} ({role})")

    @property
    def names(self) -> set[str]:
        """What it can be asked for by: accuracy, eval_test/accuracy, test/accuracy."""
        dataset = self.place.partition("_")[2] or self.place
        return {self.metric, f"{self.place}/{self.metric}", f"{dataset}/{self.metric}"}


def plot_runs(runs: Sequence[Run], out: Path, metrics: Sequence[str] | None = None) -> Path:
    """Draws the runs' metrics over steps to `out`, a PNG: a panel for each metric, a curve for each run and dataset.

    metrics: names such as accuracy, test/accuracy, train/loss; default all but counts (`num_*`). A panel has a
    logarithmic scale if less is better and its values span more than 1.5 decades. The image's folder is created.
    Raises RequestError for a metric that no run has, and for runs without any.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    curves = _select(_curves(runs), metrics)
    figure = _draw(runs, curves)
    FigureCanvasAgg(figure)
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format="png", dpi=120)
    except OSError as error:
        raise RequestError(f"out: {out} cannot be written: {error.strerror}") from error
    return out


def _curves(runs: Sequence[Run]) -> list[_Curve]:
    curves = []
    for i, run in enumerate(runs):
        for place, records in run.series.items():
            for metric in dict.fromkeys(name for record in records for name in metrics_of(record)):
                points = [(r["step"], math.nan if r[metric] is None else r[metric]) for r in records if metric in r]
                steps, values = zip(*points, strict=True)
                curves.append(_Curve(run=i, place=place, metric=metric, steps=steps, values=values))
    if not curves:
        raise RequestError(f"no metrics to plot yet in {', '.join(str(run.logdir) for run in runs)}")
    return curves


def _select(curves: list[_Curve], metrics: Sequence[str] | None) -> list[_Curve]:
    if metrics is None:
        return [curve for curve in curves if not curve.metric.startswith("num_")] or curves
    known = sorted(set().union(*(curve.names for curve in curves)))
    for name in metrics:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
            raise RequestError(f"metrics: no run has {name!r}; closest: {', '.join(close)}")
    return [curve for curve in curves if curve.names & set(metrics)]


def _draw(runs: Sequence[Run], curves: Sequence[_Curve]) -> Figure:
    from matplotlib.figure import Figure

    panels = _panels(curves)
    columns = min(3, len(panels)) if len(panels) != 4 else 2
    rows = math.ceil(len(panels) / columns)
    # A lone panel would be too small to hold the names of the runs above it.
    width, height = (max(columns * _PANEL_INCHES[0], 6.4), rows * _PANEL_INCHES[1] + 0.5)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    colors = _colors(len(runs))
    # One order for all panels: training lies beneath, and a dataset looks the same everywhere.
    places = sorted({curve.place for curve in curves}, key=lambda place: (_ROLES.index(place.partition("_")[0]), place))
    for axes, metric in zip(grid, panels, strict=False):
        _draw_panel(axes, metric, panels[metric], colors, places)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    _name_runs(figure, runs, colors)
    return figure


def _panels(curves: Iterable[_Curve]) -> dict[str, list[_Curve]]:
    """Metric -> curves; the training loss first, then what is evaluated, then the rest of training."""
    panels: dict[str, list[_Curve]] = {}
    for curve in curves:
        panels.setdefault(curve.metric, []).append(curve)
    telling = text.telling(panels)
    order = sorted(
        panels,
        key=lambda m: (m != "loss", all(c.place == "train" for c in panels[m]), better(m) is None, telling.index(m)),
    )
    return {metric: panels[metric] for metric in order}


def _draw_panel(
    axes: Axes, metric: str, curves: Sequence[_Curve], colors: Sequence[str], places: Sequence[str]
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter

    evaluated = [place for place in places if place != "train"]
    keys = {}
    for curve in sorted(curves, key=lambda curve: places.index(curve.place)):
        # With one run, colors are free to tell the datasets apart.
        color = colors[curve.run] if len(colors) > 1 else f"C{places.index(curve.place)}"
        if curve.place == "train":
            look = {"linewidth": 1.0, "alpha": 0.55, "linestyle": "-", "marker": "." if len(curve.steps) == 1 else ""}
        else:
            line, marker = _LOOKS[evaluated.index(curve.place) % len(_LOOKS)]
            look = {"linewidth": 1.6, "linestyle": line, "marker": marker, "markersize": 3.5}
        axes.plot(curve.steps, curve.values, color=color, **look)
        key_color = color if len(colors) == 1 else "0.3"
        keys[curve.place] = Line2D([], [], color=key_color, label=curve.dataset, **look)
    axes.set_title(metric, fontsize=11)
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=9, labelbottom=True)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if better(metric) is min and _decades(curves) > _DECADES_FOR_LOG_SCALE:
        _log_scale(axes)
    axes.legend(handles=list(keys.values()), fontsize=8, framealpha=0.6)


def _log_scale(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # 0.05, not 5 x 10^-2
    axes.yaxis.set_minor_formatter(NullFormatter())


def _decades(curves: Iterable[_Curve]) -> float:
    values = [value for curve in curves for value in curve.values if not math.isnan(value)]
    if not values or min(values) <= 0:
        return 0.0
    return math.log10(max(values) / min(values))


def _colors(number_of: int) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if number_of <= 10:
        return [f"C{i}" for i in range(number_of)]
    # More runs than distinct colors are most often a sweep in order: show the order.
    return [to_hex(colormaps["viridis"](i / (number_of - 1))) for i in range(number_of)]


def _name_runs(figure: Figure, runs: Sequence[Run], colors: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    names = labels(runs)
    experiments = {str(run.info.get("experiment")) for run in runs}
    if len(runs) == 1:
        figure.suptitle(f"{names[0]}  ({experiments.pop()})", fontsize=12)
        return
    if len(experiments) > 1:
        names = [f"{name} ({run.info.get('experiment')})" for name, run in zip(names, runs, strict=True)]
    else:
        figure.suptitle(experiments.pop(), fontsize=12)
    handles = [Line2D([], [], color=color, linewidth=3, label=name) for name, color in zip(names, colors, strict=True)]
    across = max(1, int(figure.get_figwidth() * 11 / (max(map(len, names)) + 6)))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(across, len(names)), frameon=False, fontsize=9)
