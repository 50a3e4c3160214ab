"""A data root, a cache and a memory filesystem that are empty at the start of every test."""

import pytest


@pytest.fixture(autouse=True)
def root(monkeypatch, tmp_path):
    """The data root."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def index_folder(tmp_path):
    return tmp_path / "cache" / "raylingvo" / "index"


@pytest.fixture
def memory():
    """fsspec's filesystem behind memory://."""
    from fsspec.implementations.memory import MemoryFileSystem

    filesystem = MemoryFileSystem()
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
