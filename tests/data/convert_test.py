"""Records in another format: bytes stay the bytes they were, and tf.Examples become columns where there are some."""

import numpy as np
import pytest

from raylingvo.data.convert import convert, written_path
from raylingvo.data.records import open_records, write_records
from raylingvo.data.tf_example import encode_example


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path / "data"))


# As other writers make them: a SequenceExample (context, then feature_lists), an Example whose only feature is an empty
# bytes_list, one with its features in another order than ours, one with an unpacked int64, and no message at all.
CONTEXT = encode_example({"id": [7]})
FOREIGN = [
    CONTEXT + b"\x12\x0e\n\x0c\n\x01f\x12\x07\n\x05\x1a\x03\n\x01\x05",
    b"\n\x0b\n\t\n\x03img\x12\x02\n\x00",
    b"\n\x18" + b"\n\n\n\x01b\x12\x05\x1a\x03\n\x01\x01" + b"\n\n\n\x01a\x12\x05\x1a\x03\n\x01\x02",
    b"\n\x0b\n\t\n\x01c\x12\x04\x1a\x02\x08\x09",
    b"",
    b"\n\xff\xfe",
]


def read(pattern):
    records = open_records(pattern)
    return records.read(np.arange(len(records)))


def test_bytes_are_copied_as_they_are():
    write_records("a.tfrecord", FOREIGN)
    for source, target in [
        ("a.tfrecord", "b.array_record"),
        ("b.array_record", "c.tfrecord.gz"),
        ("c.tfrecord.gz", "d.tfrecord"),
        ("d.tfrecord", "e.tfrecord.gz"),
        ("e.tfrecord.gz", "f.array_record"),
    ]:
        assert convert(source, target) == len(FOREIGN)
        assert read(target) == FOREIGN


def test_the_format_that_is_named_decides_too():
    write_records("a.tfrecord", FOREIGN[:1])
    convert("a.tfrecord", "same", "array_record")
    assert read("array_record:same") == FOREIGN[:1]
    convert("a.tfrecord", "fields", "jsonl")
    assert read("jsonl:fields") == [{"id": [7]}]


@pytest.mark.parametrize("target", ["a.jsonl", "a.parquet", "a.tfrecord", "a.tfrecord.gz", "a.arrow", "a.array_record"])
def test_text_survives_any_format_and_back(target):
    write_records("words.txt", [b" ".join([b"w"] * n) for n in range(1, 41)])
    assert convert("words.txt", target) == 40
    assert convert(target, "back.txt") == 40
    assert read("back.txt") == read("words.txt")


@pytest.mark.parametrize("target", ["ids.parquet", "ids.arrow", "ids.npz", "ids.jsonl"])
def test_examples_become_columns(target):
    write_records("ids.tfrecord", [encode_example({"inputs": [n, n], "name": "x"}) for n in range(5)])
    convert("ids.tfrecord", target)
    np.testing.assert_array_equal(read(target)[3]["inputs"], [3, 3])


def test_where_it_went(tmp_path):
    assert written_path("a/b.jsonl") == str(tmp_path / "data/a/b.jsonl")
    assert written_path(f"file://{tmp_path}/b.jsonl") == f"{tmp_path}/b.jsonl"
    assert written_path("memory://a/b.jsonl") == "memory://a/b.jsonl"
