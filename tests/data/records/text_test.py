"""Lines are found whatever the windows; JSON lines become dicts with arrays, or are refused with the reason."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.records import text
from raylingvo.data.records.base import BadRecord
from raylingvo.data.records.files import MemoryBlob


def read_all(content, scan=text.scan, decode=text.decode):
    blob = MemoryBlob(content)
    offsets, problem = scan(blob)
    assert problem is None
    return decode(blob.read_many(offsets[:-1].tolist(), offsets[1:].tolist()), np.arange(len(offsets) - 1))


def read_json(content):
    return read_all(content, text.scan_json, text.decode_json)


@given(content=st.lists(st.sampled_from([b"\n", b"\r", b"a", b"bc", b"\0"])).map(b"".join))
@settings(deadline=None, max_examples=100)
@pytest.mark.parametrize("window", [1, 3, 1 << 20])
def test_lines_are_what_lies_between_line_feeds(window, content):
    expected = content.split(b"\n")
    if not expected[-1]:
        expected.pop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_WINDOW", window)
        assert read_all(content) == expected


def test_carriage_returns_belong_to_the_line():
    assert read_all(b"a\r\n\r\nb") == [b"a\r", b"\r", b"b"]


def test_json_lines():
    lines = [
        '{"text": "grüße", "ids": [1, 2, 3], "scores": [0.5, 1], "flags": [true, false]}',
        "",
        '{"words": ["a", "b"], "empty": [], "matrix": [[1, 2], [3, 4]], "ragged": [[1], [2, 3]], "null": null}',
        '\r\n\r\n{"mixed": [1, "a"], "nested": {"a": [1]}, "number": 7, "nulls": [1, null]}',
        "",
        "",
    ]
    first, second, third = read_json("\n".join(lines).encode())
    assert first["text"] == "grüße"
    np.testing.assert_array_equal(first["ids"], np.array([1, 2, 3]), strict=True)
    np.testing.assert_array_equal(first["scores"], np.array([0.5, 1]), strict=True)
    np.testing.assert_array_equal(first["flags"], np.array([True, False]), strict=True)
    np.testing.assert_array_equal(second["matrix"], np.array([[1, 2], [3, 4]]), strict=True)
    del second["matrix"]
    assert second == {"words": ["a", "b"], "empty": [], "ragged": [[1], [2, 3]], "null": None}
    assert third == {"mixed": [1, "a"], "nested": {"a": [1]}, "number": 7, "nulls": [1, None]}


def test_large_integers_are_not_rounded():
    (record,) = read_json(
        b'{"a": [9223372036854775809, -1], "b": [18446744073709551615], "c": [9007199254740993, 0.5]}'
    )
    assert record["a"] == [2**63 + 1, -1] and record["b"].tolist() == [2**64 - 1] and record["c"] == [2**53 + 1, 0.5]
    (record,) = read_json(b'{"a": [1e300, 1], "b": [NaN, 1]}')
    assert record["a"].tolist() == [1e300, 1.0] and record["b"].dtype == np.float64


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": 1', "not JSON: Expecting ',' delimiter: line 1 column 8"),
        (b"[1, 2]", "not a JSON object but a list"),
        (b"3", "not a JSON object but a int"),
        (b'{"a": "\xff"}', "not JSON: 'utf-8' codec can't decode"),
        pytest.param(b"[" * 100_000, "not JSON: maximum recursion depth exceeded", id="deep"),
    ],
)
def test_bad_json_names_the_record_and_the_reason(line, message):
    with pytest.raises(BadRecord, match=message.replace("(", r"\(")) as error:
        read_json(b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n')
    assert error.value.number == 1 and "\n" not in str(error.value)


@given(line=st.one_of(st.binary(max_size=30), st.recursive(st.integers() | st.text(), st.lists).map(json.dumps)))
@settings(deadline=None, max_examples=100)
def test_no_line_crashes(line):
    try:
        read_json(line.encode() if isinstance(line, str) else line)
    except BadRecord as e:
        assert "\n" not in str(e)
