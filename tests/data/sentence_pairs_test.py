"""Lingvo's SentencePair messages read as the same pairs in a TSV; what is none is a bad record."""

import numpy as np
import pytest

from raylingvo.data.records import write_records
from raylingvo.data.sentence_pairs import SentencePairs, sentence_pair
from raylingvo.data.text import TextPairs
from raylingvo.data.tf_example import encode_example
from raylingvo.data.tokenizers import AsciiTokenizer
from raylingvo.errors import RequestError

ASCII = AsciiTokenizer()
PAIRS = [("hello", "hallo"), ("", "leer"), ("two words" * 20, "zwei")]
COMMON = {"source_tokenizer": ASCII, "target_tokenizer": ASCII, "bucket_bounds": (8, 256)}


@pytest.fixture(autouse=True)
def data(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def part(number, content):
    """A length-delimited field of a message, as protobuf's wire format has it."""
    size = len(content)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return bytes([number << 3 | 2]) + length + content


def message(source, target, lang=b"en"):
    sentences = [part(1, text) + (part(2, lang) if lang else b"") for text in (source, target)]
    return part(1, sentences[0]) + part(2, sentences[1])


@pytest.mark.parametrize("lang", [b"en", b""])
def test_the_same_batches_as_of_a_tsv(lang):
    write_records("pairs.tfrecord", [message(a.encode(), b.encode(), lang) for a, b in PAIRS])
    write_records("pairs.tsv", [f"{a}\t{b}".encode() for a, b in PAIRS])
    found = SentencePairs(records="pairs.tfrecord", **COMMON).eval_batches(2)
    expected = TextPairs(records="pairs.tsv", source="0", target="1", **COMMON).eval_batches(2)
    assert len(found) == len(expected) == 2
    for k in range(2):
        for name, values in found[k].items():
            np.testing.assert_array_equal(values, expected[k][name])


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (b"plain text", "these 10 bytes are no SentencePair$"),
        (encode_example({"a": [1]}), "are no SentencePair: there is no tgt_sentence$"),
        (message(b"a", b"\xff"), "field 'tgt_sentence' is not text"),
    ],
)
def test_what_is_no_pair(record, why):
    with pytest.raises(ValueError, match=why):
        sentence_pair(record)
    write_records("pairs.tfrecord", [message(b"a", b"b"), record])
    with pytest.raises(RequestError, match=r"pairs\.tfrecord: record 1.*; max_bad_records is 0"):
        SentencePairs(records="pairs.tfrecord", **COMMON).open()
    assert len(SentencePairs(records="pairs.tfrecord", max_bad_records=1, **COMMON).open().length_NxC) == 1
