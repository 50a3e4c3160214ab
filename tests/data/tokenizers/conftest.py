"""The vocabularies of the reference, as the data root."""

from pathlib import Path

import pytest


@pytest.fixture
def vocabularies(test_data, monkeypatch) -> Path:
    """The folder of vocabularies; paths are relative to it."""
    monkeypatch.setenv("RAYLINGVO_DATA", str(test_data / "vocab"))
    return test_data / "vocab"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """An empty data root."""
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    return tmp_path
