"""Every format gives back what was written; a file is whole or absent; what a format cannot hold is named."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from raylingvo.data.records import open_records, write_records
from raylingvo.data.tf_example import decode_example
from raylingvo.errors import RequestError

BYTES_FORMATS = ["text", "tfrecord", "tfrecord_gzip", "array_record"]
DICT_FORMATS = ["jsonl", "parquet", "arrow", "npz"]
slow = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
numbers = st.integers(-(2**63), 2**63 - 1)


def arrays(dtype, elements):
    return st.lists(elements, min_size=1, max_size=5).map(lambda values: np.array(values, dtype))


rows = st.fixed_dictionaries(
    {
        "text": words,
        "number": numbers,
        "score": st.floats(allow_nan=False),
        "ids": arrays(np.int64, numbers),
        "scores": arrays(np.float64, st.floats(allow_nan=False, allow_infinity=False)),
        "matrix": arrays(np.int64, st.tuples(numbers, numbers)),
    }
)


def read_all(pattern):
    records = open_records(pattern)
    return records.read(np.arange(len(records)))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if isinstance(b[name], np.ndarray):
                np.testing.assert_array_equal(a[name], b[name], strict=True)
            else:
                assert a[name] == b[name] and type(a[name]) is type(b[name])


@given(records=st.lists(st.binary(max_size=30)))
@slow
@pytest.mark.parametrize("place", ["", "memory://d/"])
@pytest.mark.parametrize("format", BYTES_FORMATS)
def test_bytes_come_back(format, place, memory, records):
    if format == "text":
        records = [record.replace(b"\n", b"") for record in records]
        assume(not b"\n".join(records).startswith(b"\x1f\x8b"))  # what begins like gzip is read as gzip
    assert write_records(f"{place}x", iter(records), format) == len(records)
    assert read_all(f"{format}:{place}x") == records


@given(records=st.lists(rows, max_size=5))
@slow
@pytest.mark.parametrize("place", ["", "memory://d/"])
@pytest.mark.parametrize("format", ["jsonl", "parquet", "arrow"])
def test_dicts_come_back(format, place, memory, records):
    assert write_records(f"{place}x", iter(records), format) == len(records)
    assert_same(read_all(f"{format}:{place}x"), records)


@given(count=st.integers(1, 4), data=st.data())
@slow
def test_dicts_of_one_shape_come_back_from_npz(root, count, data):
    fixed = st.fixed_dictionaries(
        {
            "number": numbers,
            "text": words.map(lambda text: text.rstrip("\0")),  # NumPy's strings end there
            "ids": st.lists(numbers, min_size=3, max_size=3).map(lambda values: np.array(values, np.int64)),
        }
    )
    records = data.draw(st.lists(fixed, min_size=count, max_size=count))
    assert write_records("x.npz", records) == count
    assert_same(read_all("x.npz"), records)


@pytest.mark.parametrize("format", ["jsonl", "parquet", "arrow", "npz"])
@pytest.mark.parametrize("records", [[b"one", b"two"], [b"", b"\n"]])
def test_bytes_are_the_field_record_of_dicts_and_back(format, records):
    write_records("a", records, format)
    found = read_all(f"{format}:a")
    assert [[*row] for row in found] == [["record"]] * 2
    for other in ("tfrecord", "array_record"):
        write_records("b", found, other)
        assert read_all(f"{other}:b") == records


def test_dicts_become_tf_examples():
    row = {"text": "grüße", "ids": np.array([1, 2]), "score": 0.5}
    for format in ("tfrecord", "array_record"):
        write_records("x", [row], format)
        (found,) = read_all(f"{format}:x")
        decoded = decode_example(found)
        assert decoded["text"] == ["grüße".encode()] and decoded["ids"].tolist() == [1, 2]
        assert decoded["score"].tolist() == [0.5]


def test_a_single_text_field_becomes_lines():
    write_records("x.txt", [{"text": "a"}, {"text": b"b"}, "c", b"d"])
    assert read_all("x.txt") == [b"a", b"b", b"c", b"d"]


def test_endings_choose_the_format_and_gzip(root):
    for name in ("x.txt.gz", "x.jsonl.gz", "x.tfrecord.gz"):
        write_records(name, [b"abc"] * 3)
        first = (root / name).read_bytes()
        assert first[:2] == b"\x1f\x8b" and len(read_all(name)) == 3
        write_records(name, [b"abc"] * 3)
        assert (root / name).read_bytes() == first  # no time in it
    assert gzip.decompress((root / "x.txt.gz").read_bytes()) == b"abc\n" * 3


def test_many_rows_are_several_groups(root):
    import pyarrow.parquet as pq

    n = 10_000
    for name in ("x.parquet", "x.arrow"):
        assert write_records(name, ({"id": i, "ids": np.arange(i % 3)} for i in range(n))) == n
        assert [row["id"] for row in open_records(name).read(np.array([n - 1, 0, 4096]))] == [n - 1, 0, 4096]
    assert pq.ParquetFile(root / "x.parquet").num_row_groups == 3


def test_fields_that_are_missing_are_null():
    write_records("x.parquet", [{"a": 1, "b": "x"}, {"a": 2}, {"b": "y"}])
    assert read_all("x.parquet") == [{"a": 1, "b": "x"}, {"a": 2, "b": None}, {"a": None, "b": "y"}]


def test_jsonl_is_readable_text(root):
    write_records("x.jsonl", [{"text": "grüße", "raw": b"ok", "n": np.int32(3), "m": np.eye(2)}])
    assert json.loads((root / "x.jsonl").read_text()) == {"text": "grüße", "raw": "ok", "n": 3, "m": [[1, 0], [0, 1]]}
    assert "grüße" in (root / "x.jsonl").read_text()


def failing():
    yield {"a": 1}
    raise RuntimeError("the source failed")


@pytest.mark.parametrize("format", [*BYTES_FORMATS[1:], *DICT_FORMATS])
@pytest.mark.parametrize("place", ["", "memory://d/"])
def test_a_failure_leaves_the_file_as_it_was(root, memory, format, place):
    write_records(f"{place}x", [{"a": 1}, {"a": 2}], format)
    before = read_all(f"{format}:{place}x")
    with pytest.raises(RuntimeError, match="the source failed"):
        write_records(f"{place}x", failing(), format)
    assert read_all(f"{format}:{place}x") == before
    with pytest.raises(RuntimeError, match="the source failed"):
        write_records(f"{place}new", failing(), format)
    assert {path.name for path in root.iterdir()} <= {"x"} and {*memory.store} <= {"/d/x"}


@pytest.mark.parametrize(
    ("format", "records", "message"),
    [
        ("text", [b"a", b"b\nc"], "cannot write record 1: text cannot hold a record with a line feed in it; jsonl can"),
        ("text", [{"a": 1, "b": "x"}], "cannot write record 0: text has lines, not the fields a, b; jsonl has"),
        ("text", [3], r"cannot write record 0: it must be bytes or a dict \(got int\)"),
        ("jsonl", [{"a": b"\xff"}], "cannot write record 0: JSON cannot hold bytes that are not UTF-8; parquet"),
        ("jsonl", [{"a": {1, 2}}], "cannot write record 0: JSON cannot hold a set"),
        ("jsonl", ["\ud800"], "cannot write record 0: 'utf-8' codec can't encode"),
        ("tfrecord", [b"a", {"x": None}], "cannot write record 1: feature 'x' cannot be in a tf.Example"),
        ("parquet", [{"a": 1}, {"a": "x"}], "records 0 to 1, field 'a': "),
        ("parquet", [{"a": 1}] * 4096 + [{"a": "x"}], "records 4096 to 4096, field 'a': "),
        ("arrow", [{"a": 1}] * 4096 + [{"b": 1}], "record 4096 has the field 'b'; the first records have a"),
        ("arrow", [{"a": 1}, {}], "record 1 has no fields; rows need some"),
        ("npz", [], "an .npz needs at least one record"),
        ("npz", [{"a": 1}, {"b": 1}], r"cannot write record 1: its fields \['b'\] are not \['a'\], as before"),
        ("npz", [{"a": [1]}, {"a": [1, 2]}], r"cannot write record 1: 'a' is int64\[2\]; .* record 0 has int64\[1\]"),
        ("npz", [{"a": None}], r"cannot write record 0: 'a' is object\[\]"),
        ("npz", [{}], "cannot write record 0: it has no fields"),
        ("npz", [{"a": b"a"}, {"a": b"a\0"}], "cannot write record 1: 'a' has text or bytes that end in a zero byte"),
        ("npz", [b"a\0"], "cannot write record 0: 'record' has text or bytes that end in a zero byte"),
        ("npz", [{"a": ["b", "c\0"]}], "cannot write record 0: 'a' has text or bytes that end in a zero byte"),
        ("npz", [{"a": ["b", 1]}], "cannot write record 0: 'a' has .* text and numbers in one list"),
        ("iota", [], r"must be one of text, .* npz \(got 'iota'\)"),
        ("sstable", [], r"must be one of text, .* npz \(got 'sstable'\)"),
        ("", [], r"the format of x must be one of .* \(got ''\)"),
    ],
)
def test_what_a_format_cannot_hold_is_named(root, format, records, message):
    with pytest.raises(RequestError, match=message) as error:
        write_records("x", records, format)
    assert "\n" not in str(error.value)
    assert not list(root.iterdir())


def test_places_that_cannot_be_written(root, memory, monkeypatch):
    (root / "file").touch()
    for format in ("text", "array_record", "parquet"):
        with pytest.raises(RequestError, match=r"^cannot write file/x: "):
            write_records("file/x", [{"a": "b"}], format)
    with pytest.raises(RequestError, match=r"parquet cannot be gzipped; leave \.gz out of the name"):
        write_records("x.gz", [{"a": 1}], "parquet")

    def refuse(*args, **kwargs):
        raise ValueError("403 Forbidden")

    monkeypatch.setattr(type(memory), "put_file", refuse)
    with pytest.raises(RequestError, match=r"^cannot write memory://x: 403 Forbidden$"):
        write_records("memory://x", [b"a"], "text")
