"""Snapshots on disk: read as they were written, and found again by a store that was started anew."""

from pathlib import Path

import numpy as np
import pytest

from raylingvo.actors.spill import Part, SpillFolder
from raylingvo.training.pieces import Place


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def parts(step: int) -> list[Part]:
    """Of two hosts: whole leaves, and pieces."""
    settings = {"learner.learning_rate": 0.1 * step}
    return [
        ([np.full((3, 2), step, np.float32)], None, settings),
        ([np.arange(step)], [Place(4, (5,))], settings),
    ]


def test_what_is_written_is_read_and_found_by_the_next_store(root: Path) -> None:
    folder = SpillFolder("token")
    places = {step: folder.write(step, 0.1 + step, parts(step)) for step in (20, 3)}
    (root / "raylingvo-snapshots-token" / ".7-half").mkdir()  # it was killed in the middle of this one

    next_one = SpillFolder("token")
    assert sorted(next_one.found()) == [(3, 3.1, 48, places[3]), (20, 20.1, 184, places[20])]
    assert not (root / "raylingvo-snapshots-token" / ".7-half").exists()
    for step, place in places.items():
        for (found, *others), (expected, *expected_others) in zip(next_one.read(place), parts(step), strict=True):
            np.testing.assert_array_equal(found, expected)
            assert others == expected_others
    next_one.delete(places[3])
    assert [step for step, *_ in SpillFolder("token").found()] == [20]


def test_nothing_is_there_before_the_first_and_after_the_end(root: Path) -> None:
    folder = SpillFolder("token")
    assert folder.found() == []
    assert not list(root.iterdir())
    folder.write(1, 0.0, parts(1))
    assert oct((root / "raylingvo-snapshots-token").stat().st_mode & 0o777) == "0o700"
    folder.close()
    folder.close()
    assert not list(root.iterdir())
    assert SpillFolder("another").found() == []
