"""Where windows lie over frames, and which results are padded."""

import jax.numpy as jnp
import numpy as np
import pytest

from raylingvo.models.layers.time_windows import TimeWindow, zero_padded

PADDINGS = jnp.asarray(np.arange(7) >= np.array([[7], [4], [3]]), jnp.float32)


def test_a_result_is_padded_if_any_of_its_frames_is():
    np.testing.assert_array_equal(TimeWindow(size=(3, 3)).paddings(PADDINGS), PADDINGS)
    paddings = TimeWindow(size=(3, 3), stride=(2, 2)).paddings(PADDINGS)
    np.testing.assert_array_equal(paddings, [[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1]])


def test_with_align_first_a_result_is_padded_if_its_frame_is():
    paddings = TimeWindow(size=(3, 3), stride=(2, 2), align="first").paddings(PADDINGS)
    np.testing.assert_array_equal(paddings, [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])


@pytest.mark.parametrize("length", range(1, 9))
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_there_is_a_result_for_each_stride_of_frames(length, stride):
    for window in (
        TimeWindow(size=(3, 1), stride=(stride, 1), dilation=(2, 1)),
        TimeWindow(size=(3, 1), stride=(stride, 1), dilation=(2, 1), align="first"),
        TimeWindow(size=(3, 1), stride=(stride, 1), dilation=(2, 1), causal=True),
    ):
        before, after = window.padding(length, 1)[0]
        assert (length + before + after - 5) // stride + 1 == -(-length // stride)
        if window.causal or window.align == "first":
            assert before == (4 if window.causal else 2)


def test_the_ratio_counts_frames_in_the_sequence():
    ratio = TimeWindow(size=(5, 1)).missing_ratio(PADDINGS)
    np.testing.assert_allclose(ratio[0], [5 / 3, 5 / 4, 1, 1, 1, 5 / 4, 5 / 3], rtol=1e-6)
    np.testing.assert_allclose(ratio[1], [5 / 3, 5 / 4, 5 / 4, 5 / 3, 5 / 2, 5, 0], rtol=1e-6)
    strided = TimeWindow(size=(5, 1), stride=(2, 1)).missing_ratio(PADDINGS)
    np.testing.assert_allclose(strided, ratio[:, ::2], rtol=1e-6)


def test_what_lingvo_does_differently():
    """Causal windows of an odd number of columns, and the frames that it counts: (size - 1) // 2 before each stride."""
    for size, dilation, sides in ((2, 1, (0, 1)), (3, 1, (0, 2)), (5, 1, (1, 3)), (3, 2, (1, 3)), (1, 1, (0, 0))):
        window = TimeWindow(size=(3, size), dilation=(1, dilation), causal=True, compat="lingvo")
        assert window.padding(7, 9) == ((2, 0), sides)
    around = TimeWindow(size=(5, 1), compat="lingvo")
    np.testing.assert_array_equal(around.missing_ratio(PADDINGS), TimeWindow(size=(5, 1)).missing_ratio(PADDINGS))
    causal = TimeWindow(size=(5, 1), causal=True, compat="lingvo")
    np.testing.assert_array_equal(causal.missing_ratio(PADDINGS), around.missing_ratio(PADDINGS))
    # Of 8 frames, "SAME" windows with a stride of 2 begin at frames -1, 1, ..; those counted at -2, 0, ...
    strided = TimeWindow(size=(5, 1), stride=(2, 1), compat="lingvo")
    np.testing.assert_allclose(strided.missing_ratio(jnp.zeros((1, 8)))[0], [5 / 3, 1, 1, 5 / 4], rtol=1e-6)


def test_padded_frames_become_0_whatever_they_were():
    x = jnp.full((3, 7, 2, 1), jnp.nan).at[1, :4].set(2.0)
    y = zero_padded(x, PADDINGS)[1, :, 0, 0]
    np.testing.assert_array_equal(y, [2, 2, 2, 2, 0, 0, 0])
    assert zero_padded(x, None) is x


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 1)}, r"size must be two numbers >= 1 \(got \(0, 1\)\)"),
        ({"stride": (1,)}, r"stride must be two numbers >= 1 \(got \(1,\)\)"),
        ({"dilation": (1, -1)}, r"dilation must be two numbers >= 1 \(got \(1, -1\)\)"),
        ({"align": "last"}, r"align must be one of same, first \(got 'last'\)"),
        ({"compat": "tf"}, r"compat must be None or 'lingvo' \(got 'tf'\)"),
    ],
)
def test_what_is_wrong_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        TimeWindow(**{"size": (3, 3)} | options)
