"""Pictures of attention: everything is on them, can be read, and is where it belongs."""

import io
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from raylingvo.monitor.alignment_plot import MAX_TOKENS, Alignment, draw_alignments


@pytest.fixture
def drawn(monkeypatch):
    """drawn(alignments) -> (the figure, its pixels f32[H, W, 4])."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    return lambda alignments: (imread(io.BytesIO(draw_alignments(alignments)), format="png"), figures[-1])[::-1]


def alignment(source, target, title="example 7"):
    return Alignment(title, source, target, np.eye(len(target), len(source), dtype=np.float32))


def tokens(axes):
    """What is above, and what is on the left."""
    texts = [(text.get_rotation(), text.get_text()) for text in axes.texts]
    return [text for angle, text in texts if angle == 90], [text for angle, text in texts if angle == 0]


def test_tokens_are_on_the_axes_and_attention_between_them(drawn):
    given = [alignment(["▁a", "b", "</s>"], ["▁Ä", "</s>"], "one"), alignment(["c"], ["d"], "two")]
    figure, pixels = drawn(given)
    assert [tokens(axes) for axes in figure.axes] == [(given[0].source, given[0].target), (["c"], ["d"])]
    assert {"one", "two"} <= {text.get_text() for text in figure.texts}
    left, bottom, width, height = figure.axes[0].get_position().bounds
    H, W = pixels.shape[:2]

    def cell(t, s):
        y, x = 1 - bottom - height * (1 - (t + 0.5) / 2), left + width * (s + 0.5) / 3
        return pixels[int(y * H), int(x * W), 0]

    red_2x3 = np.array([[cell(t, s) for s in range(3)] for t in range(2)])
    assert (red_2x3[np.eye(2, 3) == 1] < 0.2).all()
    assert (red_2x3[np.eye(2, 3) == 0] > 0.9).all()


def test_everything_is_within_the_picture_and_nothing_over_another(drawn):
    long = ["Donaudampfschifffahrt"] * 20
    given = [alignment(long, long), alignment(["a"], ["b"]), alignment(["a"] * 60, ["b"] * 3), alignment(["i"], long)]
    figure, pixels = drawn(given)
    renderer = figure.canvas.get_renderer()
    H, W = pixels.shape[:2]
    panels = []
    for axes in figure.axes:
        boxes = [text.get_window_extent(renderer) for text in axes.texts] + [axes.get_window_extent(renderer)]
        panels.append(
            [min(b.x0 for b in boxes), min(b.y0 for b in boxes), max(b.x1 for b in boxes), max(b.y1 for b in boxes)]
        )
    titles = [text.get_window_extent(renderer).extents.tolist() for text in figure.texts]
    boxes = [*panels, *titles]
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        assert 0 <= x0 < x1 <= W, i
        assert 0 <= y0 < y1 <= H, i
        for u0, v0, u1, v1 in boxes[:i]:
            assert x1 <= u0 or u1 <= x0 or y1 <= v0 or v1 <= y0


def test_long_sentences_are_cut_and_say_so(drawn):
    figure, _ = drawn([alignment(["a"] * 60, ["b"] * 70), alignment(["c"] * MAX_TOKENS, ["d"])])
    assert list(map(len, tokens(figure.axes[0]))) == [MAX_TOKENS, MAX_TOKENS]
    titles = {text.get_text() for text in figure.texts}
    assert "example 7 (first 48 of 60 source tokens, first 48 of 70 target tokens)" in titles
    assert "example 7" in titles


def test_any_token_can_be_drawn(drawn):
    odd = ["▁Größe", "$x_1$", "$", "\\frac", "Ж", "λ", " ", "\n", "\x07", "\u0378", "", "x" * 40]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of glyphs that are missing
        figure, _ = drawn([alignment(odd, odd)])
    shown = ["▁Größe", "$x_1$", "$", "\\frac", "Ж", "λ", "␣", "␣", "�", "�", "", "x" * 15 + "…"]
    assert tokens(figure.axes[0]) == (shown, shown)


def test_none_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        draw_alignments([])
