"""gzip: whole members, several of them, and what is left of a damaged one."""

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.records.files import MemoryBlob, find
from raylingvo.data.records.inflate import begins, inflate, is_gzipped


def inflated(content):
    blob, problem = inflate(MemoryBlob(content))
    return bytes(blob.window(0, blob.size)), problem


@given(members=st.lists(st.binary(max_size=100), min_size=1, max_size=3), zeros=st.integers(0, 5))
@settings(deadline=None, max_examples=50)
def test_members_follow_each_other(members, zeros):
    content = b"".join(map(gzip.compress, members)) + bytes(zeros)
    assert is_gzipped(MemoryBlob(content))
    assert inflated(content) == (b"".join(members), None)


def test_every_truncation_is_noticed_and_keeps_a_beginning():
    whole = bytes(range(256)) * 3
    content = gzip.compress(whole)
    for size in range(10, len(content)):
        found, problem = inflated(content[:size])
        assert whole.startswith(found) and problem == "the gzip stream ends early"
    assert inflated(content[:-4])[0] == whole


@pytest.mark.parametrize("step", [7, 1 << 20])
def test_damage_keeps_what_comes_before_it(monkeypatch, step):
    from raylingvo.data.records import inflate as module

    monkeypatch.setattr(module, "_STEP", step)
    whole = b"".join(b"line %d\n" % i for i in range(5000))
    content = bytearray(gzip.compress(whole))
    content[-6] ^= 1  # the checksum
    assert inflated(bytes(content)) == (
        whole,
        "the gzip stream is damaged (Error -3 while decompressing data: incorrect data check)",
    )
    assert inflated(gzip.compress(b"a") + b"garbage")[0] == b"a"
    assert "damaged" in inflated(gzip.compress(b"a") + b"garbage")[1]


def test_the_beginning_of_a_file_does_not_need_the_rest(root):
    (root / "x").write_bytes(gzip.compress(bytes(10_000_000))[:500])
    assert begins(find("x")[0], 1000) == bytes(1000)
    (root / "y").write_bytes(b"plain")
    assert begins(find("y")[0], 3) == b"pla"
    (root / "z").write_bytes(b"\x1f\x8b\x08not gzip")
    assert begins(find("z")[0], 100) == b"\x1f\x8b\x08not gzip"
