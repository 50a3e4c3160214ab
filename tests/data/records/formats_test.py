"""The format of files: by their ending, by their content, or refused with the prefixes to choose from."""

import gzip
import io

import pytest

from raylingvo.data.records import tfrecord
from raylingvo.data.records.files import find
from raylingvo.data.records.formats import by_name, of_files
from raylingvo.errors import RequestError


@pytest.mark.parametrize(
    ("path", "format"),
    [
        ("a.txt", "text"),
        ("a.tsv", "text"),
        ("A.TXT.GZ", "text"),
        ("a.jsonl", "jsonl"),
        ("a.jsonl.gz", "jsonl"),
        ("a.tfrecord", "tfrecord"),
        ("a.tfrecord-00000-of-00010", "tfrecord"),
        ("a.tfrecord-00000-of-00010.gz", "tfrecord"),
        ("a-00000-of-00010.tfrecord", "tfrecord"),
        ("a.parquet", "parquet"),
        ("a.arrow", "arrow"),
        ("a.feather", "arrow"),
        ("a.array_record-00000-of-00001", "array_record"),
        ("a.npz", "npz"),
        ("a.en", ""),
        ("a.en.gz", ""),
        ("folder.txt/a", ""),
    ],
)
def test_endings(path, format):
    assert by_name(path) == format


def test_formats_without_gzip():
    with pytest.raises(RequestError, match=r"a.parquet.gz: parquet cannot be gzipped; decompress it first"):
        by_name("a.parquet.gz")


def framed(*records):
    file = io.BytesIO()
    tfrecord.write(file, records)
    return file.getvalue()


# A length whose first bytes are gzip's magic; and such a first record.
LOOKS_GZIPPED = framed(bytes(0x088B1F))


@pytest.mark.parametrize(
    ("content", "format"),
    [
        (framed(b"x"), "tfrecord"),
        (framed(b""), "tfrecord"),
        (LOOKS_GZIPPED, "tfrecord"),
        (gzip.compress(framed(b"x"), mtime=0), "tfrecord"),
        (b"a line\nanother\r\n\ttab", "text"),
        ("grüße".encode(), "text"),
        (b"\xef\xbb\xbfbyte order mark", "text"),
        (gzip.compress(b"a line\n", mtime=0), "text"),
        ("ü".encode() * 3000, "text"),  # cut within a character
        (b"x" * 4095 + "€".encode(), "text"),
        (b"", "text"),
    ],
)
def test_contents(root, content, format):
    (root / "x").write_bytes(content)
    assert of_files("x", find("x")) == format


@pytest.mark.parametrize(
    "content", [b"\0\1\2", b"\xff\xfe", b"text \x1b[0m", framed(b"x")[:11], b"\x1f\x8b\x08garbage"]
)
def test_unknown_contents_name_the_prefixes(root, content):
    (root / "x").write_bytes(content)
    with pytest.raises(RequestError, match=r"cannot tell the format of .*x; .* as in tfrecord:.*x \(or text, jsonl,"):
        of_files("x", find("x"))


def test_one_format_for_all_files(root):
    (root / "empty").touch()
    (root / "a.txt").write_bytes(b"text")
    (root / "b.jsonl").write_bytes(b"{}")
    (root / "records").write_bytes(framed(b"x"))
    assert of_files("", find("empty") + find("records")) == "tfrecord"
    assert of_files("", find("empty") + find("b.jsonl")) == "jsonl"
    for names in (["a.txt", "b.jsonl"], ["a.txt", "records"]):
        with pytest.raises(RequestError, match=r"'p' mixes the formats (jsonl and text|text and tfrecord); open each"):
            of_files("p", [find(name)[0] for name in names])
