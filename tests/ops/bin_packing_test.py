"""Bin packing: nothing is lost, no row overflows, and the rows are few."""

import functools
import gzip
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.ops import bin_packing
from raylingvo.ops.bin_packing import best_fit, fill_ratio

examples = settings(max_examples=100, deadline=None)


@st.composite
def problems(draw, min_columns=1):
    max_lens = draw(st.lists(st.integers(1, 20), min_size=min_columns, max_size=3))
    items = st.tuples(*[st.integers(1, m) for m in max_lens])
    return np.array(draw(st.lists(items, max_size=60)), np.int64).reshape(-1, len(max_lens)), max_lens


def columns(lens):
    return np.array(lens, np.int64)[:, None]


def loads(row_of_item, lens, num_rows):
    """i64[R, C]"""
    loads = np.zeros((num_rows, lens.shape[1]), np.int64)
    np.add.at(loads, row_of_item, lens)
    return loads


def best_fit_decreasing(lens, max_len):
    """The plain loop: row of each item."""
    rooms, row_of_item = [], [0] * len(lens)
    for i in sorted(range(len(lens)), key=lambda i: (-lens[i], i)):
        fitting = [(room, row) for row, room in enumerate(rooms) if room >= lens[i]]
        row = min(fitting)[1] if fitting else len(rooms)
        if row == len(rooms):
            rooms.append(max_len)
        rooms[row] -= lens[i]
        row_of_item[i] = row
    return row_of_item


def fewest_rows(lens, max_len):
    """By trying everything."""

    @functools.cache
    def search(items, rooms):
        if not items:
            return len(rooms)
        first, rest = items[0], items[1:]
        options = [search(rest, tuple(sorted((*rooms, max_len - first))))]
        for i, room in enumerate(rooms):
            if room >= first:
                options.append(search(rest, tuple(sorted((*rooms[:i], room - first, *rooms[i + 1 :])))))
        return min(options)

    return search(tuple(sorted(lens, reverse=True)), ())


@examples
@given(problems(), st.none() | st.integers(1, 30))
def test_every_item_has_a_row_and_no_row_overflows(problem, window):
    lens, max_lens = problem
    row_of_item, num_rows = best_fit(lens, max_lens, window=window)
    assert row_of_item.dtype == np.int64
    assert row_of_item.shape == (len(lens),)
    assert (loads(row_of_item, lens, num_rows) <= max_lens).all()
    np.testing.assert_array_equal(np.unique(row_of_item), np.arange(num_rows))


@examples
@given(problems(), st.integers(1, 30))
def test_windows_are_packed_on_their_own(problem, window):
    lens, max_lens = problem
    row_of_item, num_rows = best_fit(lens, max_lens, window=window)
    first_row = 0
    for start in range(0, len(lens), window):
        rows, num_new = best_fit(lens[start : start + window], max_lens)
        np.testing.assert_array_equal(row_of_item[start : start + window], rows + first_row)
        first_row += num_new
    assert num_rows == first_row


@examples
@given(problems(min_columns=2))
def test_equal_items_are_taken_in_input_order(problem):
    lens, max_lens = problem
    row_of_item, _ = best_fit(lens, max_lens)
    for item in np.unique(lens, axis=0):
        rows = row_of_item[(lens == item).all(axis=1)]
        assert (np.diff(rows) >= 0).all()


@examples
@given(st.integers(1, 40).flatmap(lambda m: st.tuples(st.just(m), st.lists(st.integers(1, m), max_size=60))))
def test_one_column_takes_no_more_rows_than_best_fit_decreasing(problem):
    max_len, lens = problem
    _, num_rows = best_fit(columns(lens).reshape(-1, 1), [max_len])
    expected = best_fit_decreasing(lens, max_len)
    assert num_rows <= max(expected, default=-1) + 1
    row_of_item, num_rows = bin_packing.best_fit_decreasing(np.array(lens, np.int64), max_len)
    np.testing.assert_array_equal(row_of_item, expected)
    assert num_rows == max(expected, default=-1) + 1


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12).flatmap(lambda m: st.tuples(st.just(m), st.lists(st.integers(1, m), min_size=1, max_size=8))))
def test_one_column_is_near_the_best_possible(problem):
    max_len, lens = problem
    _, num_rows = best_fit(columns(lens), [max_len])
    best = fewest_rows(lens, max_len)
    assert best <= num_rows <= 1.5 * best  # as best fit decreasing (Simchi-Levi 1994)


@examples
@given(problems())
def test_no_two_rows_of_one_window_could_be_one(problem):
    lens, max_lens = problem
    row_of_item, num_rows = best_fit(lens, max_lens)
    load = loads(row_of_item, lens, num_rows)
    for i in range(num_rows):
        for j in range(i):
            assert ((load[i] + load[j]) > max_lens).any()


def test_rows_are_filled_exactly_where_that_is_possible():
    # Best fit decreasing puts 5 and 4 together, and needs a third row for 2.
    lens = columns([3, 3, 2, 4, 3, 5])
    row_of_item, num_rows = best_fit(lens, [10])
    np.testing.assert_array_equal(loads(row_of_item, lens, num_rows), [[10], [10]])


def test_columns_make_up_for_each_other():
    # Pairs that are long on one side share rows with pairs that are long on the other.
    lens = np.array([[8, 2]] * 10 + [[2, 8]] * 10)
    _, num_rows = best_fit(lens, [10, 10])
    assert num_rows == 10
    assert fill_ratio(lens, [10, 10], num_rows) == 1.0


def test_the_result_is_the_one_of_former_versions():
    # An input that resumes must pack as before.
    lens = np.arange(1, 41).reshape(20, 2) * 7 % 19 + 1
    expected = [4, 2, 2, 0, 5, 6, 3, 1, 5, 1, 5, 2, 3, 0, 4, 3, 6, 1, 6, 4]
    assert best_fit(lens, [32, 32])[0].tolist() == expected
    expected = [5, 5, 2, 3, 5, 4, 3, 4, 5, 6, 2, 4, 6, 0, 1, 4, 3, 1, 0, 5]
    assert best_fit(lens[:, :1], [32])[0].tolist() == expected
    assert best_fit(columns([2, 3, 3, 2, 2, 2]), [7])[0].tolist() == [0, 0, 1, 0, 1, 1]


def test_many_different_items_are_packed_in_runs(monkeypatch):
    monkeypatch.setattr(bin_packing, "_MAX_TUPLES", 50)
    lens = np.random.default_rng(0).integers(1, 100, (400, 2))
    row_of_item, num_rows = best_fit(lens, [200, 200])
    expected, expected_rows = best_fit(lens, [200, 200], window=50)
    np.testing.assert_array_equal(row_of_item, expected)
    assert num_rows == expected_rows
    # Many items, but few different ones: one run.
    lens = np.repeat(lens[:50], 8, axis=0)
    np.testing.assert_array_equal(best_fit(lens, [200, 200])[0], best_fit(lens, [200, 200], window=400)[0])


def test_rows_of_many_slots():
    lens = np.random.default_rng(0).integers(1, 2**20, (300, 3))
    max_lens = [2**20, 2**21, 2**20]
    row_of_item, num_rows = best_fit(lens, max_lens)
    assert (loads(row_of_item, lens, num_rows) <= max_lens).all()
    row_of_item, num_rows = best_fit(lens[:, :1], max_lens[:1])
    assert (loads(row_of_item, lens[:, :1], num_rows) <= max_lens[0]).all()


def test_nothing_takes_no_rows():
    for num_columns in (1, 2):
        row_of_item, num_rows = best_fit(np.zeros((0, num_columns), np.int64), [5] * num_columns)
        assert (row_of_item.tolist(), num_rows) == ([], 0)
        assert fill_ratio(np.zeros((0, num_columns), np.int64), [5] * num_columns, 0) == 1.0


@pytest.mark.parametrize(
    ("lens", "max_lens", "window", "message"),
    [
        ([[1, 2], [0, 3]], [4, 4], None, r"lens\[1, 0\] must be in \[1, 4\] \(got 0\)"),
        ([[1, 2], [1, 5]], [4, 4], None, r"lens\[1, 1\] must be in \[1, 4\] \(got 5\); drop empty and too long"),
        ([1, 2], [4], None, r"lens must be integers of shape \[n, 1\] \(got int64 \[2\]\)"),
        ([[1.5]], [4], None, r"lens must be integers of shape \[n, 1\] \(got float64 \[1, 1\]\)"),
        ([[1]], [4, 4], None, r"lens must be integers of shape \[n, 2\]"),
        ([[1]], [0], None, r"max_lens must be one or more integers >= 1 \(got \[0\]\)"),
        ([[1]], [], None, "max_lens must be one or more integers"),
        ([[1]], 4, None, r"max_lens must be one or more integers >= 1 \(got 4\)"),
        ([[1]], [4], 0, r"window must be None or >= 1 \(got 0\)"),
    ],
)
def test_bad_arguments_are_refused(lens, max_lens, window, message):
    with pytest.raises(ValueError, match=message):
        best_fit(np.array(lens), max_lens, window=window)


def test_fill_ratio():
    lens = np.array([[3, 1], [2, 4]])
    assert fill_ratio(lens, [5, 5], 1) == 1.0
    assert fill_ratio(lens, [5, 15], 2) == 0.25
    with pytest.raises(ValueError, match=r"num_rows must be enough for \[5, 5\] slots of \[5, 5\] in a row \(got 0\)"):
        fill_ratio(lens, [5, 5], 0)


@pytest.mark.data
def test_real_sentences_fill_the_rows(test_data):
    pair = []
    for language in ("en", "de"):
        with gzip.open(test_data / "multi30k" / f"train.{language}.gz", "rt") as lines:
            pair.append([len(line.split()) for line in lines])
    lens = np.array(pair).T
    assert lens.shape == (29_000, 2)

    _, num_rows = best_fit(lens[:, :1], [256])
    assert num_rows == math.ceil(lens[:, 0].sum() / 256)  # as few as there can be
    assert fill_ratio(lens[:, :1], [256], num_rows) > 0.999
    _, num_rows = best_fit(lens[:, :1], [256], window=4096)
    assert fill_ratio(lens[:, :1], [256], num_rows) > 0.995

    # German has fewer words, so its rows cannot be full if they are as long: 0.967 is the most there can be.
    _, num_rows = best_fit(lens, [256, 256])
    assert fill_ratio(lens, [256, 256], num_rows) > 0.96
    _, num_rows = best_fit(lens, [256, 240])
    assert fill_ratio(lens, [256, 240], num_rows) > 0.985
