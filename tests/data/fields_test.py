"""Fields of records of every kind by name, and which values are text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.fields import MissingFieldError, as_fields, examples, field, fields_of, text, text_of
from raylingvo.data.tf_example import ExampleError, Feature, encode_example

EXAMPLE = encode_example({"en": "a house", "ids": [3, 4]})
SMALL = settings(deadline=None, max_examples=60)
names = st.text(min_size=1, max_size=5)


@SMALL
@given(record=st.dictionaries(names, st.text(max_size=5), min_size=1, max_size=4))
def test_a_text_is_the_same_in_a_dict_and_in_a_tf_example(record):
    serialized = encode_example(record)
    for name, value in record.items():
        assert text(record, name) == value
        if "\0" not in value:
            assert text(serialized, name) == value
    assert fields_of(record) == fields_of(record, list(record)) == record


@SMALL
@given(parts=st.lists(st.text(st.characters(exclude_characters="\t\0", codec="utf-8"), max_size=5), min_size=1))
def test_fields_of_a_line_have_numbers(parts):
    line = "\t".join(["x", *parts]).encode()
    assert text(line, "") == line.decode()
    for i, part in enumerate(["x", *parts]):
        assert text(line, str(i)) == part


def test_several_fields():
    assert fields_of(b"a\tb\tc", ["2", "0", ""]) == {"2": b"c", "0": b"a", "": b"a\tb\tc"}
    assert fields_of(b"a\tb") == {"": b"a\tb"}
    assert set(fields_of(EXAMPLE)) == {"en", "ids"}
    np.testing.assert_array_equal(field(EXAMPLE, "ids"), [3, 4])


@pytest.mark.parametrize("record", [b"", b"a line", b"\n", b"\nno example", {"a": 1}])
def test_what_is_no_tf_example_stays_as_it_is(record):
    assert as_fields(record) is record


@pytest.mark.parametrize(
    ("record", "name", "message"),
    [
        ({"en": "a", "de": "b"}, "fr", "there is no field 'fr'; it has en, de"),
        ({}, "fr", "there is no field 'fr'; it has none"),
        ({"en": "a"}, "", "there is no field ''; it has en"),
        (EXAMPLE, "fr", "there is no field 'fr'; it has en, ids"),
        (b"a\tb", "2", "there is no field '2'; it has 2 tab-separated, numbered from 0"),
        (b"a\tb", "en", "there is no field 'en'; it has 2 tab-separated"),
    ],
)
def test_a_missing_field_is_named_with_those_there_are(record, name, message):
    with pytest.raises(MissingFieldError, match=message):
        text(record, name)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", "a"),
        ("stra\u00dfe".encode(), "stra\u00dfe"),
        ([b"a"], "a"),
        ([b"a", b"b"], None),
        (["a"], None),
        (b"\xff", None),
        (b"a\0", None),
        (1, None),
        (None, None),
        (np.array([1]), None),
    ],
)
def test_which_values_are_text(value, expected):
    assert text_of(value) == expected


def test_what_is_no_text_is_shown_in_short():
    with pytest.raises(ValueError, match=r"^field 'a' is not text \(got 1\)$"):
        text({"a": 1}, "a")
    with pytest.raises(ValueError, match=r"^field 'a' is not text \(got .{36} \.\.\)$"):
        text({"a": b"\xff" * 99}, "a")
    with pytest.raises(ValueError, match=r"^field 'a' is not text \(got array\(\[\[1\], \[2\]\]\)\)$"):
        text({"a": np.array([[1], [2]])}, "a")


def test_an_example_without_a_feature_is_named_with_those_there_are():
    features = {"ids": Feature(dtype="int64"), "weights": Feature(dtype="float32", default=())}
    found = examples([EXAMPLE], features)
    assert len(found) == 1 and len(found[0]["ids"]) and len(found[0]["weights"]) == 0
    with pytest.raises(MissingFieldError, match="there is no field 'x'; it has en, ids"):
        examples([EXAMPLE], {**features, "x": Feature(dtype="int64")})
    with pytest.raises(ExampleError, match="feature 'ids' is int64; expected float32"):
        examples([EXAMPLE], {"ids": Feature(dtype="float32")})
