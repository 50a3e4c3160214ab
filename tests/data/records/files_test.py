"""Files give their bytes whether local or remote, and say in one line when they are gone, changed or out of reach."""

import os
import sys

import pytest

from raylingvo.data.records.files import MemoryBlob, _remote_file, find
from raylingvo.errors import RequestError

CONTENT = bytes(range(256)) * 4


@pytest.fixture(params=["local", "remote", "memory"])
def blob(request, root, memory):
    if request.param == "memory":
        return MemoryBlob(CONTENT)
    if request.param == "local":
        (root / "x").write_bytes(CONTENT)
        return find("x")[0].open()
    memory.pipe_file("/x", CONTENT)
    return find("memory://x")[0].open()


def test_ranges(blob):
    assert blob.size == len(CONTENT)
    assert bytes(blob.window(3, 700)) == CONTENT[3:700]
    assert blob.read_many([5, 0, 1000], [6, 1024, 1000]) == [CONTENT[5:6], CONTENT, b""]
    assert blob.read_many([], []) == []


def test_empty_files(root, memory):
    (root / "x").touch()
    memory.pipe_file("/x", b"")
    for name in ("x", "memory://x"):
        opened = find(name)[0].open()
        assert (opened.size, bytes(opened.window(0, 0))) == (0, b"")


def test_changes_are_noticed(root, memory):
    local, remote = root / "x", "memory://x"
    local.write_bytes(b"12345")
    memory.pipe_file("/x", b"12345")
    files = [find("x")[0], find(remote)[0]]
    blobs = [file.open() for file in files]
    with local.open("r+b") as opened:
        opened.truncate(2)  # in place: the mapping would end in a page that is not there
    memory.pipe_file("/x", b"12")
    for blob in blobs:
        with pytest.raises(RequestError, match="x has changed while it was in use; open it again"):
            blob.read_many([0], [5])
    with pytest.raises(RequestError, match="has changed"):
        files[0].open()
    assert find("x")[0].version != files[0].version
    assert find(remote)[0].version != files[1].version


def test_replacing_a_file_does_not_disturb_who_has_it_open(root):
    (root / "x").write_bytes(b"old")
    blob = find("x")[0].open()
    (root / "y").write_bytes(b"new content")
    (root / "y").replace(root / "x")
    assert blob.read_many([0], [3]) == [b"old"]


def test_files_that_cannot_be_read(root):
    (root / "x").write_bytes(b"1")
    file = find("x")[0]
    (root / "x").unlink()
    with pytest.raises(RequestError, match=r"^cannot read .*x: No such file or directory$"):
        file.open()
    os.mkfifo(root / "pipe")
    with pytest.raises(RequestError, match="pipe is not a plain file; records need random access"):
        find("pipe")
    (root / "gone").symlink_to(root / "nowhere")
    with pytest.raises(RequestError, match=r"^cannot read .*/gone: No such file or directory$"):
        find("g*")


def test_a_server_that_ignores_ranges(memory, monkeypatch):
    memory.pipe_file("/x", CONTENT)
    blob = find("memory://x")[0].open()
    monkeypatch.setattr(type(memory), "cat_ranges", lambda self, paths, *args, **kwargs: [CONTENT] * len(paths))
    with pytest.raises(RequestError, match=r"^memory:///x: its server gives whole files only; copy the file to this"):
        blob.window(0, 9)


def test_what_web_servers_tell_of_a_file_is_its_version():
    from fsspec.implementations.memory import MemoryFileSystem

    versions = set()
    for info in ({}, {"ETag": "a"}, {"Last-Modified": "Mon"}, {"Last-Modified": "Tue"}, {"Content-MD5": "a"}):
        versions.add(_remote_file(MemoryFileSystem(), "/x", {"size": 1, **info}).version)
    assert len(versions) == 5


def test_remote_globs_and_folders(memory):
    for name in ("b.txt", "a.txt", "c/d.txt"):
        memory.pipe_file(f"/f/{name}", b"")
    assert [file.path for file in find("memory://f/*.txt")] == ["memory:///f/a.txt", "memory:///f/b.txt"]
    assert [file.path for file in find("memory:///f/*")] == ["memory:///f/a.txt", "memory:///f/b.txt"]
    with pytest.raises(RequestError, match=r"memory://f is a folder; name its files: memory://f/\*"):
        find("memory://f")
    for missing in ("memory://f/none", "memory://f/none*"):
        with pytest.raises(RequestError, match="no file matches memory://f/none"):
            find(missing)


def test_a_missing_driver_is_named_with_its_package(monkeypatch):
    from fsspec.registry import _registry

    # The drivers may be installed here; a None in sys.modules makes their import fail.
    for scheme, package in (("gs", "gcsfs"), ("s3", "s3fs")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(_registry, scheme, raising=False)
        with pytest.raises(RequestError, match=f"cannot open {scheme}://b/x: .*; run: pip install {package}$"):
            find(f"{scheme}://b/x")
    with pytest.raises(RequestError, match="cannot open nope://x: Protocol not known: nope"):
        find("nope://x")


def test_a_failing_storage_is_a_request_error(memory, monkeypatch):
    class DriverError(Exception):
        pass

    def fail(*args, **kwargs):
        raise DriverError("403 Forbidden\nlong explanation")

    monkeypatch.setattr(type(memory), "info", fail)
    with pytest.raises(RequestError, match=r"^cannot list memory://x: 403 Forbidden$"):
        find("memory://x")
