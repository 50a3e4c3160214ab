"""Checksums: every file of a folder counts, and whatever happens to one is found and named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from damages import DAMAGES, damage

from raylingvo.training import checksums


@pytest.fixture
def sealed(tmp_path):
    folder = tmp_path / "sealed"
    (folder / "below" / "deeper").mkdir(parents=True)
    (folder / "a").write_bytes(b"of the first file")
    (folder / "below" / "deeper" / "b").write_bytes(np.random.default_rng(0).bytes(3 << 20))
    (folder / "empty").touch()
    checksums.seal(folder)
    return folder


def test_what_was_not_changed_is_whole_also_elsewhere(sealed, tmp_path):
    assert checksums.damage(sealed) is None
    shutil.copytree(sealed, tmp_path / "copy")
    assert checksums.damage(tmp_path / "copy") is None


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["a", "below/deeper/b", checksums.FILE])
def test_every_damage_is_found_and_its_file_named(sealed, name, how):
    damage(sealed / name, how)
    found = checksums.damage(sealed)
    assert found is not None
    assert found.startswith(f"{name} ")
    assert "\n" not in found


def test_sizes_are_told(sealed):
    damage(sealed / "a", "cut")
    assert checksums.damage(sealed) == "a has 8 bytes of 17"


@pytest.mark.parametrize("content", ["[]", "{}", '{"files": [1]}', '{"files": {"a": 3}}', '{"files": {"a": ["x", 0]}}'])
def test_sums_of_another_form_are_damage(sealed, content):
    (sealed / checksums.FILE).write_text(content)
    assert checksums.damage(sealed) == f"{checksums.FILE} is not as it was written"


def test_a_folder_or_file_without_sums_is_damaged(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        assert checksums.damage(path) == f"{checksums.FILE} is missing"


def test_a_file_that_may_not_be_read_is_no_damage(sealed, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(sealed / "a"))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError):
        checksums.damage(sealed)


def test_a_file_that_the_disk_has_lost_is_damage(sealed, monkeypatch):
    def lose(*args, **kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checksums, "_crc", lose)
    assert checksums.damage(sealed) == "a cannot be read: Input/output error"


def test_the_sums_are_of_all_files(sealed):
    files = json.loads((sealed / checksums.FILE).read_text())["files"]
    assert sorted(files) == ["a", "below/deeper/b", "empty"]
