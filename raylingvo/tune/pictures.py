"""A sweep as three PNGs: the metric by step, the parameters side by side, and the metric by each parameter."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import random
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylingvo.monitor import text
from raylingvo.monitor.atomic import write_atomically
from raylingvo.tune.record import Sweep, Trial, best_trial, ranked, short_keys, value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_DECADES_FOR_LOG_SCALE = 1.5
# What is so many quartile ranges worse than the middle half is left outside the axes.
_FAR_OUTSIDE = 4.0
_MOST_TICKS = 12
_BEST = "#d62728"
_LOST = "0.55"
_LINES_FOR_NAMES = 8  # so many curves can be told apart by a legend
_LONGEST_NAME = 14  # characters of a line


def draw(sweep: Sweep, directory: Path) -> list[Path]:
    """Writes the pictures, each atomically, and returns their paths. Raises OSError, naming the file."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    paths = []
    for name, make in PICTURES.items():
        # A dollar in a parameter's value is no formula; a glyph that the font lacks is a box, not a warning.
        with rc_context({"text.parse_math": False}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")
            figure = make(sweep)
            FigureCanvasAgg(figure)
            png = io.BytesIO()
            figure.savefig(png, format="png", dpi=120)
        path = Path(directory) / name
        write_atomically(path, png.getvalue())
        paths.append(path)
    return paths


def metric_by_step(sweep: Sweep) -> Figure:
    """A curve for each trial that has a value, the better the darker; the best one in red, above the others."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter

    figure = _figure(sweep, (8.0, 5.0))
    axes = figure.subplots()
    shown = [trial for trial in ranked(sweep) if trial.best(sweep.mode)]
    if not shown:
        return _nothing(axes)
    best, colors = best_trial(sweep), _colors(sweep)
    many = len(shown) > _LINES_FOR_NAMES
    width = 1.5 if not many else 1.1 if len(shown) <= 50 else 0.8
    handles = []
    for trial in reversed(shown):
        steps, values = zip(*trial.history, strict=True)
        is_best = best is not None and trial.number == best.number
        color = _BEST if is_best else colors.get(trial.number, _LOST)
        (line,) = axes.plot(
            steps,
            [value if math.isfinite(value) else math.nan for value in values],
            color=color,
            linewidth=2.4 if is_best else width,
            alpha=1.0 if is_best or not many else 0.7,
            marker="." if len(steps) == 1 else "",
            markersize=7,
            label=f"{trial.number:04d}",
        )
        handles.append(line)
        if _lost(trial) or not math.isfinite(values[-1]):
            end = [point for point in trial.history if math.isfinite(point[1])][-1]
            axes.plot(*end, "x", color=color, markersize=5, linestyle="")
    handles = [] if many else [line for line in reversed(handles) if line.get_color() != _BEST]
    if best:
        point = best.best(sweep.mode)
        assert point is not None
        axes.plot(*point, "*", color=_BEST, markersize=13, markeredgecolor="white", linestyle="")
        handles.insert(
            0, Line2D([], [], color=_BEST, linewidth=2.4, marker="*", markersize=9, label=_title(sweep, best))
        )
    if any(_lost(trial) or not math.isfinite(trial.history[-1][1]) for trial in shown):
        handles.append(_mark("x", _LOST, "failed or not finite"))
    _scale(axes, [v for t in shown for _, v in t.history if math.isfinite(v)], sweep.mode)
    _tidy(axes)
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylabel(sweep.metric, fontsize=9)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _legend(figure, handles)
    if many:
        _color_bar(figure, axes, sweep)
    return figure


def parallel_coordinates(sweep: Sweep) -> Figure:
    """A vertical axis for each parameter and one for the metric; a line through them for each trial."""
    from matplotlib.lines import Line2D

    keys = sweep.keys
    figure = _figure(sweep, (max(8.0, 1.3 * (len(keys) + 1) + 1.0), 5.2))
    axes = figure.subplots()
    scored = [trial for trial in ranked(sweep) if _scored(sweep, trial)]
    if not scored:
        return _nothing(axes)
    best, colors = best_trial(sweep), _colors(sweep)
    scales = [_parameter(sweep, key) for key in keys] + [_metric_scale(sweep, scored)]
    lost = [trial for trial in sweep.trials if _lost(trial)]
    for trial in lost:
        axes.plot(range(len(keys)), _heights(scales, trial.params, keys), color="0.8", linewidth=0.7, zorder=1)
    for trial in reversed(scored):
        is_best = trial is best
        heights = [*_heights(scales, trial.params, keys), scales[-1].position(_value(sweep, trial))]
        axes.plot(
            range(len(scales)),
            heights,
            color=_BEST if is_best else colors[trial.number],
            linewidth=2.6 if is_best else 1.3 if len(scored) <= 50 else 0.8,
            alpha=1.0 if is_best or len(scored) <= 10 else 0.6,
            marker="o" if is_best or len(scales) == 1 else "",
            markersize=4,
            zorder=4 if is_best else 2,
        )
    names = [*short_keys(keys).values(), sweep.metric]
    for x, (name, scale) in enumerate(zip(names, scales, strict=True)):
        axes.axvline(x, color="0.25", linewidth=0.9, zorder=3)
        axes.text(x, 1.06, _wrapped(name), ha="center", va="bottom", fontsize=9, linespacing=1.0)
        for height, label in scale.ticks():
            box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "alpha": 0.75, "linewidth": 0}
            axes.plot(x, height, "_", color="0.25", markersize=8, zorder=3)
            axes.annotate(
                label, (x, height), (6, 0), textcoords="offset points", va="center", fontsize=8, bbox=box, zorder=5
            )
    axes.set_xlim(-0.15, len(scales) - 1 + 0.35)  # room for the last labels
    axes.set_ylim(-0.04, 1.04)
    axes.axis("off")
    handles = [Line2D([], [], color=_BEST, linewidth=2.6, label=_title(sweep, best))] if best else []
    if lost:
        handles.append(Line2D([], [], color="0.8", label=f"{len(lost)} failed or not finite"))
    _legend(figure, handles)
    _color_bar(figure, axes, sweep)
    return figure


def params(sweep: Sweep) -> Figure:
    """A panel for each parameter: the best value of the metric of each trial over the parameter's value."""
    keys = sweep.keys
    across = min(4, max(1, len(keys))) if len(keys) not in (5, 6, 9) else 3
    down = max(1, math.ceil(len(keys) / across))
    figure = _figure(sweep, (max(6.4, 3.3 * across + 0.6), max(4.2, 2.7 * down + 1.0)))
    grid = figure.subplots(down, across, squeeze=False, sharey=True).flatten()
    scored = [trial for trial in ranked(sweep) if _scored(sweep, trial)]
    lost = [trial for trial in sweep.trials if _lost(trial)]
    for axes in grid[max(1, len(keys)) :]:
        axes.set_visible(False)
    if not keys or not (scored or lost):
        for axes in grid[1:]:
            axes.set_visible(False)
        return _nothing(grid[0], "no trial has a value yet" if keys else "there are no parameters")
    best = best_trial(sweep)
    for axes, (key, name) in zip(grid, short_keys(keys).items(), strict=False):
        _draw_panel(axes, sweep, _parameter(sweep, key), scored, lost)
        axes.set_title(_wrapped(name, 38), fontsize=10)
    for axes in grid[::across]:
        axes.set_ylabel(sweep.metric, fontsize=9)
    handles = [_mark("*", _BEST, _title(sweep, best), markersize=11)] if best else []
    if any(trial.status == "stopped" for trial in scored[1:]):
        handles.append(_mark("o", "0.3", "stopped early", markerfacecolor="none"))
    if lost:
        handles.append(_mark("x", _LOST, "failed or not finite"))
    _legend(figure, handles)
    if scored:
        _color_bar(figure, list(grid), sweep)
    return figure


PICTURES: dict[str, Callable[[Sweep], Figure]] = {
    "metric_by_step.png": metric_by_step,
    "parallel_coordinates.png": parallel_coordinates,
    "params.png": params,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scale:
    """Where values lie on an axis from 0 to 1."""

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    categories: tuple[Any, ...] | None = None  # evenly spaced

    def position(self, value: Any) -> float:
        """0 to 1; NaN for what is absent or not finite."""
        if self.categories is not None:
            place = [i for i, category in enumerate(self.categories) if repr(category) == repr(value)]
            return (place[0] + 0.5) / len(self.categories) if place else math.nan
        if not _is_number(value) or not math.isfinite(value) or (self.log and value <= 0):
            return math.nan
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return 0.5 if low == high else min(max((at - low) / (high - low), 0.0), 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        """(position, label), few enough to lie beside each other."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        if self.categories is not None:
            every = math.ceil(len(self.categories) / _MOST_TICKS)
            shown = self.categories[::every]
            labels = _short_labels([value_text(value) for value in shown])
            return [(self.position(value), label) for value, label in zip(shown, labels, strict=True)]
        if self.low == self.high:
            return [(0.5, f"{self.low:.4g}")]
        values = MaxNLocator(4).tick_values(self.low, self.high)
        if self.log and self.high / self.low > 10:
            subs = (1.0,) if self.high / self.low > 100 else (1.0, 2.0, 5.0)
            values = LogLocator(subs=subs, numticks=6).tick_values(self.low, self.high)
        inside = [value for value in values if self.low <= value <= self.high]
        inside = inside if len(inside) > 1 else [self.low, self.high]
        return [(self.position(value), f"{value:.6g}") for value in inside]


def _parameter(sweep: Sweep, key: str) -> _Scale:
    values = [trial.params[key] for trial in sweep.trials if key in trial.params]
    space = str(sweep.request["params"].get(key, ""))
    different = {repr(value): value for value in values}.values()
    listed = space.startswith(("choice", "grid")) and len(different) <= _MOST_TICKS
    finite = [value for value in values if _is_number(value) and math.isfinite(value)]
    if listed or len(finite) < len(values) or not finite:
        return _Scale(key=key, categories=tuple(sorted(different, key=_category_order)))
    low, high = min(finite), max(finite)
    return _Scale(key=key, low=low, high=high, log=space.startswith("log") and low > 0)


def _category_order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, then the rest by name."""
    return (False, value, "") if _is_number(value) else (True, 0.0, value_text(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _metric_scale(sweep: Sweep, scored: Sequence[Trial]) -> _Scale:
    values = [_value(sweep, trial) for trial in scored]
    low, high, log = _limits(values, sweep.mode)
    return _Scale(key=sweep.metric, low=low, high=high, log=log)


def _heights(scales: Sequence[_Scale], values: Any, keys: Sequence[str]) -> list[float]:
    return [scale.position(values.get(key)) for key, scale in zip(keys, scales, strict=False)]


def _draw_panel(axes: Axes, sweep: Sweep, scale: _Scale, scored: Sequence[Trial], lost: Sequence[Trial]) -> None:
    colors, best = _colors(sweep), best_trial(sweep)
    jitter = random.Random(0)  # the same picture each time

    def place(trial: Trial) -> float:
        if scale.categories is None:
            value = trial.params.get(scale.key)
            return math.nan if math.isnan(scale.position(value)) else float(value)  # pyright: ignore[reportArgumentType]
        spread = 0.0 if len(scored) == 1 else 0.5 / len(scale.categories)
        return scale.position(trial.params.get(scale.key)) + spread * (jitter.random() - 0.5)

    values = [_value(sweep, trial) for trial in scored]
    low, high = _scale(axes, values, sweep.mode, room_below=bool(lost)) if scored else (0.0, 1.0)
    for trial in reversed(scored):
        at = (place(trial), min(max(_value(sweep, trial), low), high))
        if trial is best:
            axes.plot(*at, "*", color=_BEST, markersize=13, markeredgecolor="white", linestyle="", zorder=4)
            continue
        color = colors[trial.number]
        hollow: dict[str, Any] = {"markerfacecolor": "none"} if trial.status == "stopped" else {}
        size = 5.5 if len(scored) <= 50 else 4.0
        axes.plot(*at, "o", color=color, markersize=size, alpha=0.85, linestyle="", **hollow)
    bottom = axes.get_xaxis_transform()  # x in data, y from 0 to 1
    for trial in lost:
        axes.plot(place(trial), 0.04, "x", color=_LOST, markersize=5, linestyle="", transform=bottom, clip_on=False)
    _tidy(axes)
    if scale.categories is not None:
        ticks = scale.ticks()
        axes.set_xlim(0, 1)
        crowded = sum(len(label) + 2 for _, label in ticks) > 34
        axes.set_xticks(
            [at for at, _ in ticks],
            [label for _, label in ticks],
            rotation=30 if crowded else 0,
            ha="right" if crowded else "center",
            rotation_mode="anchor" if crowded else "default",
        )
    elif scale.log:
        _log_ticks(axes, scale)
    elif scale.low == scale.high:
        axes.set_xticks([scale.low], [f"{scale.low:.4g}"])
    else:
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(4))
    if not scored:
        axes.set_yticks([])


def _log_ticks(axes: Axes, scale: _Scale) -> None:
    from matplotlib.ticker import NullFormatter

    axes.set_xscale("log")
    ticks = scale.ticks()
    axes.set_xticks([scale.low * (scale.high / scale.low) ** at for at, _ in ticks], [label for _, label in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())


def _scored(sweep: Sweep, trial: Trial) -> bool:
    return trial.status != "failed" and trial.best(sweep.mode) is not None


def _lost(trial: Trial) -> bool:
    """Failed, or diverged before its first value."""
    return trial.status == "failed" or (bool(trial.history) and trial.best("min") is None)


def _value(sweep: Sweep, trial: Trial) -> float:
    best = trial.best(sweep.mode)
    assert best is not None
    return best[1]


def _colors(sweep: Sweep) -> dict[int, str]:
    """By rank, not by value: one that is far off would leave a single color to the others."""
    from matplotlib.colors import to_hex

    scored = [trial for trial in ranked(sweep) if _scored(sweep, trial)]
    colors = _color_map()
    return {trial.number: to_hex(colors(i / max(1, len(scored) - 1))) for i, trial in enumerate(scored)}


def _color_map() -> Any:
    """Viridis without its yellow end, which is faint on white."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap([colormaps["viridis"](0.92 * i / 255) for i in range(256)])


def _color_bar(figure: Figure, axes: Any, sweep: Sweep) -> None:
    """Says which values the colors of the ranks stand for: the best, the quarters and the worst."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scored = [trial for trial in ranked(sweep) if _scored(sweep, trial)]
    if len(scored) < 2:
        return
    at = sorted({round(i * (len(scored) - 1) / 4) for i in range(5)})
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, len(scored) - 1), _color_map()), ax=axes, fraction=0.03, pad=0.02, aspect=30
    )
    bar.set_ticks(at, labels=[text.number(_value(sweep, scored[i])) for i in at])
    bar.ax.invert_yaxis()  # the best on top
    bar.ax.tick_params(labelsize=8)
    bar.set_label(f"{sweep.metric}, by rank", fontsize=8)


def _limits(values: Sequence[float], mode: str) -> tuple[float, float, bool]:
    """The lowest and the highest value to show, and whether a logarithmic scale helps.

    All values are shown but those much worse than most: they would flatten the others.
    """
    log = mode == "min" and min(values) > 0
    at = sorted(math.log10(value) if log else value for value in values)
    first, third = at[len(at) // 4], at[3 * len(at) // 4]
    if len(at) >= 8 and third > first:
        reach = _FAR_OUTSIDE * (third - first)
        at = [v for v in at if (v <= third + reach if mode == "min" else v >= first - reach)]
    if not log:
        return at[0], at[-1], False
    return 10 ** at[0], 10 ** at[-1], at[-1] - at[0] > _DECADES_FOR_LOG_SCALE


def _scale(axes: Axes, values: Sequence[float], mode: str, room_below: bool = False) -> tuple[float, float]:
    """Scales y to the values of the metric, and returns the lowest and the highest that are inside."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high, log = _limits(values, mode)
    inside = low, high
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 1e4 else (1.0,), numticks=12))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # 0.05, not 5 x 10^-2
        axes.yaxis.set_minor_formatter(NullFormatter())
        low, high = math.log10(low), math.log10(high)
    range_ = (high - low) or abs(high) or 1.0
    low, high = low - (0.16 if room_below else 0.06) * range_, high + 0.06 * range_
    axes.set_ylim(*((10**low, 10**high) if log else (low, high)))
    return inside


def _figure(sweep: Sweep, inches: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    figure.suptitle(f"{sweep.request['experiment']}  ({sweep.mode} {sweep.metric})", fontsize=12)
    return figure


def _nothing(axes: Axes, words: str = "no trial has a value yet") -> Figure:
    axes.axis("off")
    axes.text(0.5, 0.5, words, ha="center", va="center", fontsize=12, color="0.4", transform=axes.transAxes)
    return axes.figure  # pyright: ignore[reportReturnType]  # not of a subfigure


def _tidy(axes: Axes) -> None:
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    if handles:
        longest = max(len(handle.get_label()) for handle in handles)
        across = max(1, int(figure.get_figwidth() * 11 / (longest + 6)))
        columns = min(across, len(handles))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _mark(marker: str, color: str, label: str, **look: Any) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker=marker, color=color, label=label, **look)


def _title(sweep: Sweep, best: Trial) -> str:
    step, value = best.best(sweep.mode) or (0, math.nan)
    return f"best: trial {best.number:04d}, {text.number(value)} @ {step}"


def _short_labels(labels: Sequence[str]) -> list[str]:
    """Long names by their beginning and end, or, where these are those of another, from where they differ."""
    half = (_LONGEST_NAME - 1) // 2
    short = [name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[-half:]}" for name in labels]
    shown = []
    for name, ends in zip(labels, short, strict=True):
        alike = [other for other, other_ends in zip(labels, short, strict=True) if other_ends == ends]
        start = len(os.path.commonprefix(alike)) if len(alike) > 1 else 0  # noqa: RUF071  # by characters, as meant
        rest = name[max(0, start - 3) :]
        cut = rest if len(rest) <= _LONGEST_NAME else f"{rest[: _LONGEST_NAME - 2]}…"
        shown.append(f"…{cut}" if start > 3 else ends)
    return shown


def _wrapped(name: str, width: int = _LONGEST_NAME) -> str:
    """A name over several lines, parted at its dots and underscores."""
    spaced = name.replace("_", "_ ").replace(".", ". ").replace("/", "/ ").replace("…", "… ")
    lines = textwrap.wrap(spaced, width, break_long_words=True)
    return "\n".join("".join(line.split(" ")) for line in lines)
