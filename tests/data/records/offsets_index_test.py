"""The cache of offsets: used while a file is as it was, made again when it changes, never in the way."""

import os
import subprocess
import sys

import numpy as np
import pytest

from raylingvo.data.records import files, offsets_index, open_records, tfrecord, write_records
from raylingvo.data.records.files import find

OFFSETS = np.array([0, 5, 9], np.int64)


@pytest.fixture
def file(root):
    (root / "x").write_bytes(b"1234\n678\n")
    return lambda: find("x")[0]


def test_offsets_come_back(file, index_folder):
    assert offsets_index.load(file(), "text") is None
    offsets_index.save(file(), "text", OFFSETS)
    np.testing.assert_array_equal(offsets_index.load(file(), "text"), OFFSETS, strict=True)
    assert offsets_index.load(file(), "jsonl") is None
    assert [path.suffix for path in index_folder.iterdir()] == [".npy"]


def test_other_sizes_and_times_are_other_files(file, root, index_folder):
    offsets_index.save(file(), "text", OFFSETS)
    os.utime(root / "x", ns=(1, 1))
    assert offsets_index.load(file(), "text") is None
    offsets_index.save(file(), "text", OFFSETS)
    assert offsets_index.load(file(), "text") is not None
    (root / "x").write_bytes(b"1")
    os.utime(root / "x", ns=(1, 1))
    assert offsets_index.load(file(), "text") is None
    assert len(list(index_folder.iterdir())) == 1  # replaced, not piled up


def test_damaged_caches_are_ignored(file, index_folder):
    offsets_index.save(file(), "text", OFFSETS)
    (cached,) = index_folder.iterdir()
    whole = cached.read_bytes()
    for size in range(len(whole)):
        cached.write_bytes(whole[:size])
        assert offsets_index.load(file(), "text") is None
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 4
        cached.write_bytes(flipped)
        loaded = offsets_index.load(file(), "text")
        assert loaded is None or loaded.tolist() == OFFSETS.tolist()
    np.save(cached, np.array([{}], object), allow_pickle=True)
    assert offsets_index.load(file(), "text") is None


def count_scans(monkeypatch):
    scans = []
    scan = tfrecord._walk
    monkeypatch.setattr(tfrecord, "_walk", lambda *args: scans.append(1) or scan(*args))
    return scans


def test_a_file_is_indexed_once_until_it_changes(monkeypatch):
    scans = count_scans(monkeypatch)
    write_records("x.tfrecord", [b"a", b"b"])
    for _ in range(3):
        assert open_records("x.tfrecord").read(np.array([1, 0])) == [b"b", b"a"]
    assert len(scans) == 1
    write_records("x.tfrecord", [b"aa", b"bb", b"cc"])
    assert open_records("x.tfrecord").read(np.array([2])) == [b"cc"]
    assert len(scans) == 2


def test_remote_files_are_cached_too(monkeypatch, memory):
    scans = count_scans(monkeypatch)
    for records in ([b"a", b"b"], [b"c", b"d"]):  # of the same size
        write_records("memory://x.tfrecord", records)
        for _ in range(2):
            assert open_records("memory://x.tfrecord").read(np.array([1, 0])) == records[::-1]
    assert len(scans) == 2


def test_files_without_a_version_are_not_cached(monkeypatch, memory):
    monkeypatch.setattr(files, "_VERSION_KEYS", ())
    for records in ([b"a", b"bc"], [b"de", b"f"]):  # of the same size
        write_records("memory://x.tfrecord", records)
        assert open_records("memory://x.tfrecord").read(np.array([1, 0])) == records[::-1]


@pytest.mark.parametrize("where", ["a file", "in the way", "read-only", "no home"])
def test_reading_goes_on_without_a_cache(monkeypatch, tmp_path, where):
    write_records("x.tfrecord", [b"a", b"b"])
    if where == "a file":
        (tmp_path / "no").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no"))
    elif where == "in the way":
        name = offsets_index._path(find("x.tfrecord")[0], "tfrecord")
        assert name is not None
        name.mkdir(parents=True)
    elif where == "no home":  # a container's user that /etc/passwd does not have
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")  # not even for root
    for _ in range(2):
        assert open_records("x.tfrecord").read(np.array([1, 0])) == [b"b", b"a"]


def test_the_cache_is_in_the_home_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_records("x.tfrecord", [b"a"])
    open_records("x.tfrecord")
    assert len(list((tmp_path / "home/.cache/raylingvo/index").glob("*.npy"))) == 1


def test_two_processes_may_index_at_once(root, index_folder):
    for i in range(4):
        write_records(f"x-{i:05d}-of-00004", [b"%d %d" % (i, j) for j in range(3000)], "tfrecord")
    code = (
        "import sys, numpy as np; from raylingvo.data.records import open_records\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "r = open_records('x@4'); print(len(r), r.read(np.array([11999, 0]))[0].decode(), flush=True)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0] for process in processes] == ["12000 3 2999\n"] * 2
    assert [process.returncode for process in processes] == [0, 0]
    assert len(list(index_folder.iterdir())) == 4 and all(path.suffix == ".npy" for path in index_folder.iterdir())
    assert len(open_records("x@4")) == 12000
