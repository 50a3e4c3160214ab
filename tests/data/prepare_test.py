"""The registry of recipes."""

import importlib
import inspect
from pathlib import Path

import pytest

from raylingvo.data.prepare import RECIPES, prepare
from raylingvo.errors import RequestError


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_called(name):
    recipe = importlib.import_module(RECIPES[name]).prepare
    assert list(inspect.signature(recipe).parameters) == ["from_path", "root"]


def test_an_unknown_recipe_names_the_closest():
    with pytest.raises(RequestError, match="no recipe 'minst' to prepare data; closest: mnist"):
        prepare("minst")
    with pytest.raises(RequestError, match=f"closest: {', '.join(sorted(RECIPES))}"):
        prepare("zzz")


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"--from .*/nowhere does not exist"):
        prepare("mnist", tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"--from .*/file/below does not exist"):
        prepare("mnist", tmp_path / "file" / "below")


def test_a_path_that_cannot_be_looked_at_is_refused(tmp_path, monkeypatch):
    with pytest.raises(RequestError, match="cannot read --from ~no-such-user/x: Could not determine home directory"):
        prepare("mnist", Path("~no-such-user/x"))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(RequestError, match=r"cannot read --from .*/x: Permission denied$"):
        prepare("mnist", tmp_path / "x")
