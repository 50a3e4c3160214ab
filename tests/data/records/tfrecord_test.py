"""TFRecord framing: known bytes, whole records before any cut or flip, and lengths that no machine could hold."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
from google_crc32c import value as crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.records import tfrecord
from raylingvo.data.records.base import BadRecord
from raylingvo.data.records.files import MemoryBlob

records_lists = st.lists(st.binary(max_size=40), max_size=12)


def framed(records):
    file = io.BytesIO()
    assert tfrecord.write(file, records) == len(records)
    return file.getvalue()


def frame_with_length(length):
    """A header of any length whose checksum is right."""
    header = struct.pack("<Q", length)
    return header + struct.pack("<I", tfrecord.masked_crc(header))


def read_all(content):
    """(whole and intact records, what is wrong behind them)."""
    blob = MemoryBlob(content)
    offsets, problem = tfrecord.scan(blob)
    assert offsets.dtype == np.int64 and offsets[0] == 0
    assert (np.diff(offsets) >= tfrecord.FRAME_BYTES).all() and offsets[-1] <= len(content)
    frames = blob.read_many(offsets[:-1].tolist(), offsets[1:].tolist())
    return tfrecord.decode(frames, np.arange(len(frames))), problem


def test_known_bytes():
    # crc32c of nothing is 0, whose masked form is the delta; the length's is TensorFlow's own.
    assert framed([b""]).hex() == "0000000000000000" + "29039807" + "d8ea82a2"
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C


@given(records=records_lists)
@settings(deadline=None, max_examples=100)
def test_what_is_written_is_found(records):
    content = framed(records)
    assert read_all(content) == (records, None)
    offsets, _ = tfrecord.scan(MemoryBlob(content))
    assert offsets.tolist() == np.cumsum([0, *(len(r) + 16 for r in records)]).tolist()


def test_every_truncation_keeps_the_whole_records_before_it():
    records = [b"first", b"", b"third record"]
    content = framed(records)
    ends = np.cumsum([len(r) + 16 for r in records])
    for size in range(len(content)):
        whole = int((ends <= size).sum())
        found, problem = read_all(content[:size])
        assert found == records[:whole]
        assert (problem is None) == (size == 0 or size in ends)
    assert read_all(content[:5])[1] == "the file ends in its header, after 5 of 12 bytes"
    assert read_all(content[:15])[1] == "its length is 5 bytes, but the file ends after 0"
    assert read_all(content[:19])[1] == "its length is 5 bytes, but the file ends after 3"


@pytest.mark.parametrize("window", [16, 40, 1 << 20])
def test_windows_change_nothing(monkeypatch, window):
    monkeypatch.setattr(tfrecord, "_WINDOW", window)
    records = [b"x" * n for n in (0, 1, 30, 100, 3, 0, 0, 64)]
    content = framed(records)
    assert read_all(content) == (records, None)
    for size in (len(content) - 1, 13, 200):
        offsets, problem = tfrecord.scan(MemoryBlob(content[:size]))
        monkeypatch.setattr(tfrecord, "_WINDOW", 1 << 20)
        expected = tfrecord.scan(MemoryBlob(content[:size]))
        monkeypatch.setattr(tfrecord, "_WINDOW", window)
        np.testing.assert_array_equal(offsets, expected[0])
        assert problem == expected[1] is not None


@given(data=st.data(), records=st.lists(st.binary(max_size=30), min_size=1, max_size=6))
@settings(deadline=None, max_examples=100)
def test_no_flipped_bit_goes_unnoticed(data, records):
    content = bytearray(framed(records))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    hit = int(np.searchsorted(np.cumsum([len(r) + 16 for r in records]), at, side="right"))
    try:
        found, problem = read_all(bytes(content))
    except BadRecord as e:
        assert e.number == hit and "the checksum of its" in str(e)
    else:
        assert found == records[:hit] and problem == "the checksum of its length is wrong"


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**63 - 16, 2**40, 100])
def test_a_wrong_length_allocates_nothing(length):
    content = framed([b"good"]) + frame_with_length(length) + b"data"
    tracemalloc.start()
    found, problem = read_all(content)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert found == [b"good"]
    assert problem == f"its length is {length} bytes, but the file ends after 0"


def test_zeros_and_noise_are_no_records():
    noise = np.random.default_rng(0).bytes(10_000)
    for content in (bytes(10_000), noise):
        assert read_all(content) == ([], "the checksum of its length is wrong")
    assert read_all(framed([b"x"]) + noise)[0] == [b"x"]


def test_headers():
    assert tfrecord.is_header(framed([b"x"]))
    assert not tfrecord.is_header(framed([b"x"])[:11])
    assert not tfrecord.is_header(bytes(12))
