"""Attention between two sequences of tokens as a PNG."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# S source tokens, T target tokens.

MAX_TOKENS = 48  # of either sequence are drawn; more would be too small to read
_LONGEST_TOKEN = 16  # characters
_CELL = 0.19  # inches, and others likewise
_CHARACTER = 0.075
_MARGIN = 0.15
_TITLE = 0.28
_KEY = "from left to right: source; downwards: hypothesis; attention from 0, white, to 1, dark"
_POINTS = 8
_DPI = 100
_OWN = "DejaVu Sans"  # comes with matplotlib; has Latin, Greek, Cyrillic, ▁ and ␣
_REPLACEMENT = "\ufffd"


class Alignment(NamedTuple):
    """probs: f32[T, S], of each target token, over the source's; as many of both as are to be drawn are enough."""

    title: str
    source: Sequence[str]
    target: Sequence[str]
    probs: np.ndarray


def draw_alignments(alignments: Sequence[Alignment]) -> bytes:
    """A PNG with a panel for each: sources from left to right, targets from top to bottom, the darker the more.

    Of longer sequences the first `MAX_TOKENS` are drawn, and the title says so. Long tokens are cut. White space is
    drawn as ␣, and what no installed font has as U+FFFD. Raises ValueError if there are none.
    """
    if not alignments:
        raise ValueError("alignments must have at least one (got none)")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [_Panel(alignment) for alignment in alignments]
    families = _families(frozenset("".join(panel.text for panel in panels)))
    columns = 1 if len(panels) == 1 else 2
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    widths = [max(panel.width for panel in panels[i::columns]) for i in range(columns)]
    heights = [max(panel.height for panel in row) for row in rows]
    # Places are computed here: matplotlib's layouts would draw everything twice to find them.
    top = sum(heights) + _TITLE
    width = max(sum(widths), _CHARACTER * len(_KEY))
    figure = Figure(figsize=(width, top), dpi=_DPI)
    FigureCanvasAgg(figure)
    figure.text(_MARGIN / width, _MARGIN / top, _KEY, fontsize=_POINTS, color="0.4")
    for row, height in zip(rows, heights, strict=True):
        for panel, left in zip(row, (0.0, widths[0]), strict=False):
            panel.draw(figure, left, top, families)
        top -= height
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DPI)
    return content.getvalue()


class _Panel:
    """One alignment, and how much room it takes in inches."""

    def __init__(self, alignment: Alignment):
        self._source, self._target = ([_label(t) for t in side[:MAX_TOKENS]] for side in alignment[1:3])
        self._probs_TxS = np.asarray(alignment.probs)[: len(self._target), : len(self._source)]
        cut = [
            f"first {MAX_TOKENS} of {len(side)} {name} tokens"
            for name, side in (("source", alignment.source), ("target", alignment.target))
            if len(side) > MAX_TOKENS
        ]
        self._title = f"{alignment.title} ({', '.join(cut)})" if cut else alignment.title
        self._left = _MARGIN + _CHARACTER * max(map(len, self._target))
        self._above = _TITLE + _CHARACTER * max(map(len, self._source))
        # A title may be wider than its picture.
        self.width = max(self._left + len(self._source) * _CELL, _CHARACTER * len(self._title)) + 2 * _MARGIN
        self.height = self._above + len(self._target) * _CELL + 2 * _MARGIN

    @property
    def text(self) -> str:
        """All that is written."""
        return "".join([self._title, *self._source, *self._target])

    def draw(self, figure: Figure, left: float, top: float, families: Sequence[str]) -> None:
        """left, top: of the panel, in inches from the left and from the bottom of the figure."""
        width, height = figure.get_size_inches()
        T, S = self._probs_TxS.shape
        bottom = top - self._above - T * _CELL - _MARGIN
        axes = figure.add_axes(
            ((left + self._left) / width, bottom / height, S * _CELL / width, T * _CELL / height),
            xticks=[],
            yticks=[],
        )
        axes.imshow(self._probs_TxS, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
        # parse_math: dollars are dollars. Texts and not ticks, which take three times as long.
        look: dict[str, Any] = {"family": families, "parse_math": False}
        for s, token in enumerate(self._source):
            axes.text(s, -0.8, _drawable(token, families), rotation=90, ha="center", va="bottom", size=_POINTS, **look)
        for t, token in enumerate(self._target):
            axes.text(-0.8, t, _drawable(token, families), ha="right", va="center", size=_POINTS, **look)
        title = _drawable(self._title, families)
        figure.text((left + _MARGIN) / width, (top - _MARGIN) / height, title, va="top", size=9, **look)


def _label(token: str) -> str:
    shown = "".join("\u2423" if c.isspace() else c for c in token)
    return shown if len(shown) <= _LONGEST_TOKEN else f"{shown[: _LONGEST_TOKEN - 1]}\u2026"


def _drawable(text: str, families: Sequence[str]) -> str:
    """The text without what no font has, about which matplotlib would warn."""
    return "".join(c if any(_has(family, c) for family in families) else _REPLACEMENT for c in text)


@functools.lru_cache(maxsize=16)
def _families(characters: frozenset[str]) -> tuple[str, ...]:
    """The fonts to draw some characters with: matplotlib's own, and others for what is missing there, if installed."""
    families = [_OWN]
    missing = {c for c in characters if not _has(_OWN, c)}
    for family in sorted(_files()) if missing else []:
        if found := {c for c in missing if _has(family, c)}:
            families.append(family)
            missing -= found
    return tuple(families)


@functools.lru_cache(maxsize=1 << 16)
def _has(family: str, character: str) -> bool:
    from matplotlib.font_manager import get_font

    return get_font(_files()[family]).get_char_index(ord(character)) != 0


@functools.cache
def _files() -> dict[str, str]:
    """Families of upright fonts -> the file of one."""
    from matplotlib.font_manager import fontManager

    upright = [font for font in fontManager.ttflist if font.style == "normal" and font.weight in (400, "normal")]
    # Last Resort has a box for everything.
    return {font.name: font.fname for font in upright if not font.name.startswith("Last Resort")}
