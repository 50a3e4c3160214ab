"""Packing: nothing is lost, nothing overlaps, and what Lingvo puts somewhere is there."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from raylingvo.ops import packing
from raylingvo.ops.bin_packing import best_fit
from raylingvo.ops.packing import apply_packing, lay_out_rows, pack_sequences, pack_single_sequence

examples = settings(max_examples=100, deadline=None)
length_lists = st.lists(st.integers(-1, 14), max_size=40)
pairs = st.lists(st.tuples(st.integers(-1, 14), st.integers(-1, 14)), max_size=40)


def segments(segment_ids, indices):
    """(row, first slot, number of slots, index in the input) of each run of equal segment ids in [B, L]."""
    found = []
    for row, (ids, index) in enumerate(zip(segment_ids.tolist(), indices.tolist(), strict=True)):
        starts = [s for s in range(len(ids)) if ids[s] and (s == 0 or ids[s] != ids[s - 1])]
        for start in starts:
            stop = next((s for s in range(start, len(ids)) if ids[s] != ids[start]), len(ids))
            assert len(set(index[start:stop])) == 1
            found.append((row, start, stop - start, index[start]))
    return found


def first_fit(pairs, max_src, max_tgt, num_apart):
    """The plain loop: the row of each packed pair, by its index in the input."""
    rooms, row_of, num_packed = [], {}, 0
    for i, (src, tgt) in enumerate(pairs):
        if not (1 <= src <= max_src and 1 <= tgt <= max_tgt):
            continue
        rows = range(len(rooms)) if num_packed >= num_apart else []
        row = next((r for r in rows if rooms[r][0] >= src and rooms[r][1] >= tgt), len(rooms))
        if row == len(rooms):
            rooms.append([max_src, max_tgt])
        rooms[row][0] -= src
        rooms[row][1] -= tgt
        row_of[i] = row
        num_packed += 1
    return row_of


def split(pairs):
    return [src for src, _ in pairs], [tgt for _, tgt in pairs]


@examples
@given(pairs, st.integers(0, 12), st.integers(1, 16), st.integers(1, 16), st.integers(0, 2**40))
def test_pairs_are_packed_whole_first_fit(pairs, batch_size, max_src, max_tgt, seed):
    packed = pack_sequences(*split(pairs), batch_size, max_src, max_tgt, seed)
    row_of = first_fit(pairs, max_src, max_tgt, batch_size)
    num_rows = max(row_of.values(), default=0) + 1
    assert packed.src_segment_ids.shape == (batch_size or num_rows, max_src)
    assert packed.tgt_segment_ids.shape == (batch_size or num_rows, max_tgt)

    members = []
    for side, name in enumerate(("src", "tgt")):
        ids, pos, index = (
            getattr(packed, f"{name}_{part}") for part in ("segment_ids", "segment_pos", "indices_in_input")
        )
        assert {array.dtype for array in (ids, pos, index)} == {np.dtype(np.int32)}
        found = segments(ids, index)
        end, last_row, last_id = 0, -1, 0
        for row, start, size, i in found:
            assert size == pairs[i][side]  # whole
            end, last_id = (end, last_id) if row == last_row else (0, 0)
            assert start == end  # side by side from the left, numbered from 1
            np.testing.assert_array_equal(ids[row, start : start + size], last_id + 1)
            np.testing.assert_array_equal(pos[row, start : start + size], np.arange(size))
            end, last_row, last_id = start + size, row, last_id + 1
        assert not pos[ids == 0].any()
        assert not index[ids == 0].any()
        rows = [tuple(i for r, _, _, i in found if r == row) for row in range(len(ids))]
        members.append(rows)
    assert members[0] == members[1]

    expected = [tuple(i for i, r in row_of.items() if r == row) for row in range(num_rows)]
    if not batch_size or num_rows <= batch_size:
        assert members[0] == expected + [()] * (len(members[0]) - num_rows)
    else:
        assert len(set(members[0])) == batch_size
        assert set(members[0]) <= set(expected)


@pytest.mark.parametrize(
    "pairs",
    [
        # Rows with room on one side only.
        [(9, 2), (2, 9)] * 80 + [(2, 2)] * 5 + [(1, 1)] * 300 + [(9, 9)] * 3,
        [(1, 1)] * 1300,
        np.random.default_rng(0).integers(1, 11, (1000, 2)).tolist(),
    ],
)
@pytest.mark.parametrize("batch_size", [0, 70, 900])
def test_first_fit_among_many_rows(pairs, batch_size):
    packed = pack_sequences(*split(pairs), batch_size, 10, 10, 0)
    row_of = first_fit(pairs, 10, 10, batch_size)
    if max(row_of.values()) < batch_size or not batch_size:
        found = segments(packed.src_segment_ids, packed.src_indices_in_input)
        assert {i: row for row, _, _, i in found} == row_of


def test_rows_are_dropped_by_seed():
    lens = np.full(40, 5)
    drop = [pack_sequences(lens, lens, 4, 5, 5, seed).src_indices_in_input[:, 0] for seed in (7, 7, 7 + 2**32, 8)]
    np.testing.assert_array_equal(drop[0], drop[1])
    np.testing.assert_array_equal(drop[0], drop[2])
    assert (drop[0] != drop[3]).any()
    # Seed 0 is another one each time: 20 draws of 4 out of 40 rows are never all the same.
    assert len({tuple(pack_sequences(lens, lens, 4, 5, 5, 0).src_indices_in_input[:, 0]) for _ in range(20)}) > 1


def test_rows_are_dropped_evenly():
    counts = np.zeros(10)
    for seed in range(1, 1001):
        np.add.at(counts, packing._sample_rows(3, 10, seed), 1)
    # 300 each, standard deviation 14.5.
    assert counts.sum() == 3000
    assert (abs(counts - 300) < 70).all()


def test_draws_are_those_of_the_c_plus_plus_standard():
    # It fixes the 10,000th draw of std::mt19937, seeded with 5489; _sample_rows relies on NumPy's being the same.
    assert np.random.RandomState(5489).randint(0, 2**32, 10_000, np.uint32)[-1] == 4_123_659_995


@examples
@given(st.lists(st.integers(0, 9), max_size=40), st.integers(9, 20), st.booleans())
def test_single_sequences_are_all_packed_whole(lens, max_len, sequential):
    packed = pack_single_sequence(lens, max_len, sequential)
    assert packed.segment_ids.dtype == packed.indices_in_input.dtype == np.int32
    np.testing.assert_array_equal(packed.indices_in_input == -1, packed.segment_ids == 0)
    found = segments(packed.segment_ids, packed.indices_in_input)
    assert sorted((i, size) for _, _, size, i in found) == [(i, size) for i, size in enumerate(lens) if size]
    for row in range(len(packed.segment_ids)):
        items = [(i, start, size) for r, start, size, i in found if r == row]
        assert items == sorted(items)  # in input order
        assert [start for _, start, _ in items] == [0, *np.cumsum([size for _, _, size in items])][: len(items)]
    if sequential:
        assert [i for *_, i in found] == sorted(i for *_, i in found)
        row_sizes = [sum(size for r, _, size, _ in found if r == row) for row in range(len(packed.segment_ids))]
        firsts = [next((size for r, _, size, _ in found if r == row), 0) for row in range(len(row_sizes))]
        assert all(row_sizes[row] + firsts[row + 1] > max_len for row in range(len(row_sizes) - 1))


def test_an_empty_sequence_takes_a_segment_id():
    packed = pack_single_sequence([3, 0, 2, 0, 4], 5, True)
    np.testing.assert_array_equal(packed.segment_ids, [[1, 1, 1, 3, 3], [1, 1, 1, 1, 0]])
    # Best fit: the empty ones go to the fullest row, here the second.
    packed = pack_single_sequence([4, 0, 5, 0, 3], 9, False)
    np.testing.assert_array_equal(packed.segment_ids, [[1] * 4 + [3] * 5, [1] * 3 + [0] * 6])
    for sequential in (True, False):
        assert pack_single_sequence([0, 0], 4, sequential).segment_ids.tolist() == [[0] * 4]
        assert pack_single_sequence([], 4, sequential).segment_ids.shape == (0, 4)


@examples
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), max_size=40), st.integers(9, 20))
def test_best_fit_rows_are_laid_out_without_loss(pairs, width):
    lens = np.array(pairs, np.int64).reshape(-1, 2)
    row_of_item, num_rows = best_fit(lens, [width, width + 3])
    for column, packed_len in enumerate((width, width + 3)):
        ids, pos, index = lay_out_rows(row_of_item, lens[:, column], num_rows, packed_len)
        assert ids.shape == (num_rows, packed_len)
        found = segments(ids, index)
        assert sorted(i for *_, i in found) == list(range(len(pairs)))
        for row, start, size, i in found:
            assert row == row_of_item[i]
            assert size == lens[i, column]
            np.testing.assert_array_equal(pos[row, start : start + size], np.arange(size))


def test_rows_may_leave_items_out():
    ids, pos, index = lay_out_rows([1, -1, 0, 1], [2, 3, 1, 2], 2, 4)
    np.testing.assert_array_equal(ids, [[1, 0, 0, 0], [1, 1, 2, 2]])
    np.testing.assert_array_equal(pos, [[0, 0, 0, 0], [0, 1, 0, 1]])
    np.testing.assert_array_equal(index, [[2, 0, 0, 0], [0, 0, 3, 3]])


@examples
@given(st.data(), st.lists(st.integers(1, 7), min_size=1, max_size=20), st.booleans())
def test_apply_packing_restores_every_item(data, lens, sequential):
    packed = pack_single_sequence(lens, 10, sequential)
    dtypes = st.sampled_from([np.float32, np.int32, np.int64, np.uint64, bool, np.uint8, np.float64])
    shape = (len(lens), 7, *data.draw(st.sampled_from([(), (2,), (2, 3)])))
    values = data.draw(hnp.arrays(data.draw(dtypes), shape))
    out = apply_packing(values, 1, *packed)
    assert out.dtype == values.dtype
    assert out.shape == (*packed.segment_ids.shape, *shape[2:])
    for row, start, size, i in segments(*packed):
        np.testing.assert_array_equal(out[row, start : start + size], values[i, :size])
    assert (out[packed.segment_ids == 0] == 1).all()


@examples
@given(st.lists(st.integers(1, 7), min_size=1, max_size=20))
def test_apply_packing_adds_up_the_items_of_a_row(lens):
    packed = pack_single_sequence(lens, 10, False)
    found = segments(*packed)
    for dtype in (np.int32, np.float32, np.uint64, ml_dtypes.bfloat16):
        total = apply_packing(np.array(lens, dtype), 0, *packed)
        assert total.dtype == dtype
        np.testing.assert_array_equal(
            total.astype(np.int64), [sum(size for r, _, size, _ in found if r == row) for row in range(len(total))]
        )


def test_apply_packing_of_vectors_counts_an_index_that_follows_itself_once():
    values = np.array([1, 10, 100])
    np.testing.assert_array_equal(
        apply_packing(
            values, 7, [[1, 1, 2, 2], [1, 2, 3, 3], [0, 0, 0, 0]], [[0, 0, 1, 1], [0, 1, 0, 0], [2, 2, 2, 2]]
        ),
        [11, 12, 0],
    )
    # Padding in between does not make it another one; a row begins anew.
    np.testing.assert_array_equal(apply_packing(values, 7, [[1, 0, 1], [1, 0, 0]], [[2, 0, 2], [2, 0, 0]]), [100, 100])
    np.testing.assert_array_equal(
        apply_packing(np.array([True, False]), False, [[1, 2], [1, 0]], [[0, 1], [1, 0]]), [1, 0]
    )


@pytest.mark.parametrize("kind", [list, np.array, lambda x: np.array(x, object)])
@pytest.mark.parametrize("encode", [str, str.encode])
def test_apply_packing_joins_strings(kind, encode):
    values = kind([encode(s) for s in ("a", "bcd", "")])
    out = apply_packing(values, encode(" / "), [[1, 1, 2], [0, 1, 2], [0, 0, 0]], [[0, 0, 1], [5, 1, 2], [0, 0, 0]])
    assert isinstance(out, np.ndarray)
    assert out.tolist() == [encode(s) for s in ("a / bcd", "bcd / ", "")]


def test_apply_packing_moves_strings_and_other_types():
    ids, indices = [[1, 1, 0], [1, 2, 2]], [[1, 1, 0], [0, 1, 1]]
    values = [["a", "b"], ["c", "d"]]
    for array in (np.array(values), np.array(values, object), values):
        assert apply_packing(array, "none", ids, indices).tolist() == [["c", "d", "none"], ["a", "c", "d"]]
    values = np.arange(4, dtype=ml_dtypes.bfloat16).reshape(2, 2)
    out = apply_packing(values, 0.5, ids, indices)
    assert out.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(out.astype(np.float32), [[2, 3, 0.5], [0, 2, 3]])


def test_apply_packing_looks_at_the_first_index_of_a_run_only():
    # As in Lingvo: the rest may be anything; and a negative segment id is padding.
    values = np.array([[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(apply_packing(values, -1, [[1, 1, -2, 3]], [[1, 99, 99, 0]]), [[4, 5, -1, 1]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_sequences([1, 2, 3], [1, 2], 1, 5, 5, 1), r"src_lens must be of the same shape as tgt_lens"),
        (lambda: pack_sequences([[1]], [[1]], 1, 5, 5, 1), r"src_lens must be a vector \(got shape \(1, 1\)\)"),
        (lambda: pack_sequences([1.0], [1], 1, 5, 5, 1), r"src_lens must be integers \(got float64\)"),
        (lambda: pack_sequences([1], [1], -1, 5, 5, 1), r"packed_batch_size must be >= 0 \(got -1\)"),
        (lambda: pack_sequences([1], [1], 1, 0, 5, 1), r"packed_src_len must be >= 1 \(got 0\)"),
        (lambda: pack_sequences([1], [1], 1, 5, 0, 1), r"packed_tgt_len must be >= 1 \(got 0\)"),
        (
            lambda: pack_single_sequence([-1, 2], 5, True),
            r"lens\[0\] must be in \[0, max_packed_len\] = \[0, 5\] \(got -1\)",
        ),
        (lambda: pack_single_sequence([1, 6], 5, False), r"lens\[1\] must be in .* \[0, 5\] \(got 6\)"),
        (lambda: pack_single_sequence([1], 0, False), r"max_packed_len must be >= 1 \(got 0\)"),
        (lambda: lay_out_rows([0], [1, 2], 1, 5), r"row_of_item must be of the same shape as lens"),
        (lambda: lay_out_rows([0, 2], [1, 2], 2, 5), r"row_of_item must be < num_rows = 2 \(got 2\)"),
        (lambda: lay_out_rows([0, 1, 1], [1, 3, 3], 2, 5), r"more than packed_len = 5 slots into row 1"),
        (lambda: lay_out_rows([0], [-1], 1, 5), r"lens must be >= 0 \(got -1\)"),
        (
            lambda: apply_packing(["a", "b"], ",", [[1, 2]], [[1, 2]]),
            r"indices\[0, 1\] is out of bounds for 2 values \(got 2\)",
        ),
        (lambda: apply_packing([[1, 2]], 0, [[1, 2]], [[0, -1]]), r"indices\[0, 1\] is out of bounds for 1 values"),
        (
            lambda: apply_packing([[1, 2]], 0, [[0, 1, 1, 1]], [[0, 0, 0, 0]]),
            r"the run at \[0, 1\] is out of bounds for values of 2 columns \(got 3 slots or more\)",
        ),
        (lambda: apply_packing([1], 0, [1], [0]), r"segment_ids and indices must be matrices of the same shape"),
        (lambda: apply_packing([1], 0, [[1]], [[0, 0]]), r"\(got \(1, 1\) and \(1, 2\)\)"),
        (lambda: apply_packing([1], 0, [[1.0]], [[0]]), r"segment_ids must be integers \(got float64\)"),
        (lambda: apply_packing(1, 0, [[1]], [[0]]), r"values must have a dimension at least \(got the scalar 1\)"),
        (lambda: apply_packing([[1]], [0], [[1]], [[0]]), r"padding must be a scalar \(got shape \(1,\)\)"),
        (lambda: apply_packing([[1]], 0.5, [[1]], [[0]]), r"padding must be a value of int64.*\(got 0.5\)"),
        (lambda: apply_packing([[1]], float("nan"), [[1]], [[0]]), r"padding must be a value of int64.*\(got nan\)"),
        (lambda: apply_packing(np.array([[b"a"]]), "x", [[1]], [[0]]), r"padding must be a value of .S1.*\(got 'x'\)"),
        (lambda: apply_packing(np.zeros((1, 1), np.uint32), -1, [[1]], [[0]]), r"padding must be a value of uint32"),
        (lambda: apply_packing(["a"], 0, [[1]], [[0]]), r"padding must be a string, as values are \(got 0\)"),
        (lambda: apply_packing(["a"], b",", [[1]], [[0]]), r"values must be of the type of padding, bytes \(got 'a'\)"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_package_is_light():
    code = "import sys, raylingvo.ops; print(*({'jax', 'ray', 'tensorflow'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.split() == []


REFUSED = {
    "err_pack_shape": lambda: pack_sequences([1, 1, 1], [1, 1], 1, 5, 5, 0),
    "err_single_negative": lambda: pack_single_sequence([-1, 3], 5, False),
    "err_apply_oob_str": lambda: apply_packing(["a", "b"], ",", [[1, 2]], [[1, 2]]),
}


@pytest.mark.data
def test_lingvo_vectors(lingvo_vectors):
    cases = lingvo_vectors("d_packing")
    assert {case["op"] for case, _ in cases} >= {"pack_sequences", "pack_single_sequence", "apply_packing"}
    for case, arrays in cases:
        if case["op"] == "error":
            with pytest.raises(ValueError, match=r"must be|out of bounds"):
                REFUSED[case["id"]]()
            found = {}
        elif case["op"] == "pack_sequences":
            sizes = (case["packed_batch_size"], case["packed_src_len"], case["packed_tgt_len"])
            found = pack_sequences(arrays["src_lens"], arrays["tgt_lens"], *sizes, case["seed"])._asdict()
        elif case["op"] == "pack_single_sequence":
            args = case["max_packed_len"], case["require_sequential_order"]
            found = pack_single_sequence(arrays["lens"], *args)._asdict()
        elif case["op"] == "apply_packing":
            found = {"": apply_packing(*(arrays[name] for name in ("values", "padding", "segment_ids", "indices")))}
        else:
            assert case["op"] == "apply_packing_strings"
            out = apply_packing(case["values"], case["separator"], arrays["segment_ids"], arrays["indices"])
            assert out.tolist() == case["out"], case["id"]
            found = {}
        for name, array in found.items():
            expected = arrays[f"out_{name}" if name else "out"]
            assert array.dtype == expected.dtype, case["id"]
            np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-5, err_msg=case["id"])
