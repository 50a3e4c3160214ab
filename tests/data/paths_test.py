"""Where the data root is, and what a user reads when a file is not there."""

from pathlib import Path

from raylingvo.data import paths


def test_the_environment_variable_names_the_root(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    assert paths.data_root() == tmp_path
    assert paths.resolve("mnist/train.parquet") == tmp_path / "mnist" / "train.parquet"


def test_the_default_root_is_in_the_user_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYLINGVO_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert paths.data_root() == tmp_path / "cache" / "raylingvo" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.data_root() == tmp_path / ".cache" / "raylingvo" / "data"


def test_home_and_relative_roots_become_absolute(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAYLINGVO_DATA", "~/data")
    assert paths.data_root() == tmp_path / "data"
    monkeypatch.setenv("RAYLINGVO_DATA", "data")
    assert paths.data_root() == Path.cwd() / "data"


def test_an_absolute_path_stays_where_it_points(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path / "root"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert paths.resolve(str(tmp_path / "x")) == tmp_path / "x"
    assert paths.resolve("~/x") == tmp_path / "home" / "x"


def test_not_found_names_the_file_the_root_and_the_fix(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    assert str(paths.not_found("mnist/train.parquet", "mnist")) == (
        f"mnist/train.parquet not found under RAYLINGVO_DATA={tmp_path}; run: raylingvo data prepare mnist"
    )
    assert "data prepare" not in str(paths.not_found("own.parquet"))
