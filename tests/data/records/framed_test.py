"""Text, JSON lines and TFRecord over several files: any order of indices, damage named, broken files as allowed."""

import gc
import gzip
import io
import struct
import threading
import weakref

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raylingvo.data.records import CorruptRecordError, framed, open_records, tfrecord
from raylingvo.errors import RequestError

RECORDS = [[b"zero", b"", b"two"], [], [b"three"], [b"four", b"five"]]
ALL = [record for shard in RECORDS for record in shard]


def framed_bytes(records):
    file = io.BytesIO()
    tfrecord.write(file, records)
    return file.getvalue()


def lines(records):
    return b"".join(record + b"\n" for record in records)


CONTENTS = {"tfrecord": framed_bytes, "text": lines}
COMPRESSIONS = {"plain": bytes, "gzip": gzip.compress}


@pytest.fixture(params=[(a, b, c) for a in CONTENTS for b in COMPRESSIONS for c in ("local", "memory")], ids="-".join)
def pattern(request, root, memory):
    """Names four files of one format, compressed or not, here or remote."""
    format, compression, place = request.param
    for i, records in enumerate(RECORDS):
        content = COMPRESSIONS[compression](CONTENTS[format](records))
        if place == "local":
            (root / f"x-{i:05d}-of-00004").write_bytes(content)
        else:
            memory.pipe_file(f"/d/x-{i:05d}-of-00004", content)
    return f"{format}:{'' if place == 'local' else 'memory://d/'}x@4"


def test_any_order_of_indices(pattern):
    records = open_records(pattern)
    assert len(records) == len(ALL) and records.problems == []
    rng = np.random.default_rng(0)
    for size in (0, 1, 3, 50):
        indices = rng.integers(0, len(ALL), size)
        assert records.read(indices) == [ALL[i] for i in indices]
    assert records.read(np.arange(6, dtype=np.int32)) == ALL
    records.close()
    assert records.read(np.array([5, 0])) == [b"five", b"zero"]  # opened again


def test_many_threads(pattern, monkeypatch):
    monkeypatch.setattr(framed, "_MAX_OPEN", 1)  # every read closes another file
    records = open_records(pattern)
    failures = []

    def read(seed):
        for indices in np.random.default_rng(seed).integers(0, len(ALL), (50, 4)):
            if records.read(indices) != [ALL[i] for i in indices]:
                failures.append(indices)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


def test_wrong_indices(pattern):
    records = open_records(pattern)
    for wrong in (6, -1):
        with pytest.raises(IndexError, match=f"record {wrong} does not exist: there are 6"):
            records.read(np.array([0, wrong]))
        with pytest.raises(IndexError, match=f"record {wrong} does not exist"):
            records.where(wrong)
    with pytest.raises(ValueError, match=r"indices must be integers of shape \[B\] \(got float64\[1\]\)"):
        records.read(np.array([0.0]))


def test_where(root):
    (root / "a.txt").write_bytes(b"one\ntwo\n")
    (root / "b.txt").write_bytes(gzip.compress(b"one\n\nthree"))
    (root / "c.tfrecord").write_bytes(framed_bytes([b"xyz", b""]))
    records = open_records("?.txt")
    assert records.where(1) == f"{root}/a.txt: record 1 at byte 4"
    assert records.where(4) == f"{root}/b.txt: record 2 at byte 5 of the decompressed content"
    assert open_records("c.tfrecord").where(1) == f"{root}/c.tfrecord: record 1 at byte 19"


def test_a_flipped_bit_names_its_record_and_spares_the_others(root):
    content = bytearray(framed_bytes([b"first", b"second", b"third"]))
    content[21 + 14] ^= 1
    (root / "b.tfrecord").write_bytes(content)
    (root / "a.tfrecord").write_bytes(framed_bytes([b"zero"]))
    records = open_records("*.tfrecord")
    with pytest.raises(CorruptRecordError) as error:
        records.read(np.array([3, 2, 0]))
    assert error.value.index == 2
    assert str(error.value) == (f"{root}/b.tfrecord: record 1 at byte 21: the checksum of its 6 bytes is wrong")
    assert records.read(np.array([3, 0, 1])) == [b"third", b"zero", b"first"]


def test_every_truncation_is_an_error_or_a_problem_with_the_whole_records(root):
    records = [b"first", b"", b"third record"]
    content = framed_bytes(records)
    ends = np.cumsum([len(record) + 16 for record in records]).tolist()
    (root / "a.tfrecord").write_bytes(framed_bytes([b"before"]))
    (root / "c.tfrecord").write_bytes(framed_bytes([b"after"]))
    for size in range(len(content)):
        (root / "b.tfrecord").write_bytes(content[:size])
        whole = sum(end <= size for end in ends)
        if size in (0, *ends):
            assert len(open_records("*.tfrecord")) == whole + 2
            continue
        place = f"{root}/b.tfrecord: record {whole} at byte {[0, *ends][whole]}: "
        with pytest.raises(CorruptRecordError) as error:
            open_records("*.tfrecord")
        assert str(error.value).startswith(place) and error.value.index == whole + 1
        opened = open_records("*.tfrecord", allow_truncated=True)
        assert opened.read(np.arange(len(opened))) == [b"before", *records[:whole], b"after"]
        (problem,) = opened.problems
        assert problem.startswith(place) and problem.endswith("; it and what follows it in the file are lost")


@given(data=st.data(), compressed=st.booleans())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_gives_other_records(root, data, compressed):
    records = data.draw(st.lists(st.binary(max_size=30), min_size=1, max_size=6))
    content = bytearray((gzip.compress if compressed else bytes)(framed_bytes(records)))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (root / "x.tfrecord").write_bytes(content[: data.draw(st.integers(1, len(content)))])
    for allow_truncated in (False, True):
        try:
            opened = open_records("x.tfrecord", allow_truncated=allow_truncated)
        except CorruptRecordError as e:
            assert not allow_truncated and "\n" not in str(e)
            continue
        assert len(opened) == len(records) or opened.problems or not allow_truncated
        for i in range(len(opened)):
            try:
                assert opened.read(np.array([i])) == [records[i]]
            except CorruptRecordError as e:
                assert e.index == i


def test_a_length_of_2_to_the_63(root):
    header = struct.pack("<Q", 2**63)
    (root / "x.tfrecord").write_bytes(
        framed_bytes([b"good"]) + header + struct.pack("<I", tfrecord.masked_crc(header)) + b"data"
    )
    with pytest.raises(CorruptRecordError, match=r"x.tfrecord: record 1 at byte 20: its length is 9223372036854775808"):
        open_records("x.tfrecord")
    assert open_records("x.tfrecord", allow_truncated=True).read(np.array([0])) == [b"good"]


def test_another_format_behind_the_prefix(root):
    (root / "x").write_bytes(b"just text\n" * 3)
    with pytest.raises(CorruptRecordError, match=r"record 0 at byte 0: the checksum .* \(is it a TFRecord file\?\)"):
        open_records("tfrecord:x")
    with pytest.raises(RequestError, match=r"x is not gzipped; read it as tfrecord:.*x"):
        open_records("tfrecord_gzip:x")


def test_gzip_is_told_by_the_content(root):
    (root / "x.tfrecord").write_bytes(gzip.compress(framed_bytes([b"a"])))
    (root / "y.tfrecord").write_bytes(framed_bytes([b"b"]))
    (root / "z.tfrecord").write_bytes(framed_bytes([bytes(0x088B1F)]))  # its length looks like gzip's magic
    assert open_records("*.tfrecord").read(np.array([0, 1, 2])) == [b"a", b"b", bytes(0x088B1F)]
    assert open_records("tfrecord_gzip:x.tfrecord").read(np.array([0])) == [b"a"]


def test_truncated_gzipped_text_keeps_whole_lines(root):
    whole = b"".join(b"line %d\n" % (i * i) for i in range(2000))
    (root / "x.txt.gz").write_bytes(gzip.compress(whole)[:-2000])
    with pytest.raises(CorruptRecordError, match="of the decompressed content: the gzip stream ends early"):
        open_records("x.txt.gz")
    records = open_records("x.txt.gz", allow_truncated=True)
    assert 0 < len(records) < 2000 and len(records.problems) == 1
    assert records.read(np.arange(len(records))) == whole.splitlines()[: len(records)]


def test_bad_json_names_the_byte(root):
    (root / "x.jsonl").write_bytes(b'{"a": 1}\n\n{"a": \n{"a": 3}')
    records = open_records("x.jsonl")
    assert records.read(np.array([2, 0])) == [{"a": 3}, {"a": 1}]
    with pytest.raises(CorruptRecordError, match=r"x.jsonl: record 1 at byte 10: not JSON: Expecting value") as error:
        records.read(np.array([0, 1]))
    assert error.value.index == 1


def test_more_shards_than_open_files(root, monkeypatch):
    monkeypatch.setattr(framed, "_MAX_OPEN", 3)
    for i in range(20):
        (root / f"x{i:02d}.txt").write_bytes(b"%d\n" % i)
    records = open_records("x*.txt")
    assert records.read(np.arange(20)[::-1]) == [b"%d" % i for i in range(20)][::-1]
    assert records._open.cache_info().currsize <= 3


def test_a_file_that_changes_while_it_is_open(root):
    (root / "x.txt").write_bytes(b"a\nb\n")
    records = open_records("x.txt")
    records.read(np.array([0]))
    with (root / "x.txt").open("r+b") as file:
        file.truncate(1)
    with pytest.raises(RequestError, match=r"x.txt has changed while it was in use; open it again"):
        records.read(np.array([1]))


def test_close_lets_go_of_what_was_decompressed(root):
    (root / "x.txt.gz").write_bytes(gzip.compress(b"a\nb\n"))
    records = open_records("x.txt.gz")
    content = weakref.ref(records._inflated[0])
    records.close()
    gc.collect()
    assert content() is None
    assert records.read(np.array([1, 0])) == [b"b", b"a"]


def test_the_empty_lines_of_a_remote_file_are_one_request(memory, monkeypatch):
    memory.pipe_file("/x.jsonl", b'{"a": 1}\n\n' * 100)
    requests = []
    cat_ranges = type(memory).cat_ranges
    monkeypatch.setattr(
        type(memory), "cat_ranges", lambda *args, **kwargs: requests.append(args) or cat_ranges(*args, **kwargs)
    )
    assert len(open_records("memory://x.jsonl")) == 100
    assert len(requests) <= 3
