"""Arrow's values become Python's scalars, str, bytes and arrays, and these become columns."""

import numpy as np
import pyarrow as pa
import pytest

from raylingvo.data.records.columns import rows, table
from raylingvo.errors import RequestError


def values(array):
    """A column as the rows of a table have it."""
    return [row["x"] for row in rows(pa.table({"x": array}))]


def test_values():
    for array, expected in [
        (pa.array([True, None, False]), [True, None, False]),
        (pa.array([1.5, 2], pa.float32()), [1.5, 2]),
        (pa.array(["a", None, "ü"]), ["a", None, "ü"]),
        (pa.array([b"ab", b"cd"], pa.binary(2)), [b"ab", b"cd"]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ["b", "a", "b"]),
        (pa.array([["a"], [], None]), [["a"], [], None]),
        (pa.array([{"a": 1, "b": [2]}]), [{"a": 1, "b": [2]}]),
        (pa.array([[[1], [2, 3]]]), [[[1], [2, 3]]]),  # ragged: lists
        (pa.array([[1, None]]), [[1, None]]),
    ]:
        assert values(array) == expected


@pytest.mark.parametrize(
    "type_", [pa.list_(pa.int16()), pa.large_list(pa.int16()), pa.list_(pa.int16(), 2)], ids=["list", "large", "fixed"]
)
def test_lists_of_numbers_are_arrays(type_):
    array = pa.array([[1, 2], [3, 4], [5, 6]], type_)
    for column, expected in [
        (array, [[1, 2], [3, 4], [5, 6]]),
        (array[1:], [[3, 4], [5, 6]]),
        (pa.chunked_array([array[2:], array[:1]]), [[5, 6], [1, 2]]),
        (pa.array([[1, 2], None, [3, 4]], type_), [[1, 2], None, [3, 4]]),
        (array[:0], []),
    ]:
        found = values(column)
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            if b is None:
                assert a is None
            else:
                np.testing.assert_array_equal(a, np.array(b, np.int16), strict=True)
                a[:] = 0  # writable


def test_nested_lists_and_other_numbers():
    (matrix,) = values(pa.array([[[1, 2], [3, 4]]], pa.list_(pa.list_(pa.uint8()))))
    np.testing.assert_array_equal(matrix, np.array([[1, 2], [3, 4]], np.uint8), strict=True)
    (flags,) = values(pa.array([[True, False]]))
    np.testing.assert_array_equal(flags, np.array([True, False]), strict=True)
    (halves,) = values(pa.array([np.array([0.5, 2], np.float16)]))
    np.testing.assert_array_equal(halves, np.array([0.5, 2], np.float16), strict=True)


def test_columns_hold_the_dtypes_of_all_values():
    made = table([{"x": np.array([1], np.int8)}, {"x": []}, {"x": np.array([0.5], np.float32)}, {"x": None}], 0, None)
    assert made.schema.field("x").type == pa.list_(pa.float32())
    assert made["x"].to_pylist() == [[1], [], [0.5], None]
    assert table([{"x": np.zeros((2, 2), np.uint8)}], 0, None).schema.field("x").type == pa.list_(pa.list_(pa.uint8()))


@pytest.mark.parametrize(
    ("whole", "fraction"),
    [
        (1, 1.5),
        (1, np.float32(0.5)),
        ([1], [2.0, 0.5]),
        (np.array([1]), np.array([0.5])),
        (np.array([1]), np.array([np.nan])),
        (np.array([[1]]), np.array([[0.5]])),
        ({"a": 1}, {"a": 0.5}),
    ],
)
def test_fractions_are_not_cut_off(whole, fraction):
    schema = table([{"x": whole}], 0, None).schema
    with pytest.raises(RequestError, match=r"^record 8, field 'x' has a fraction, but .*int64.* is the type"):
        table([{"x": None}, {"x": fraction}], 7, schema)


def test_floats_that_are_whole_fit_into_integers():
    schema = table([{"x": 1, "y": np.array([1])}], 0, None).schema
    made = table([{"x": 2.0, "y": np.array([3.0])}], 7, schema)
    assert made.to_pylist() == [{"x": 2, "y": [3]}] and made.schema == schema


def test_fractions_beside_arrays_of_integers_are_not_cut_off():
    with pytest.raises(RequestError, match="record 1, field 'x' has a fraction"):
        table([{"x": np.array([1])}, {"x": [0.5, None]}], 0, None)
