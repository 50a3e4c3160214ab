"""Recipes that make datasets: from files the user has, or by download, to files under the data root."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path

from raylingvo.data.paths import data_root
from raylingvo.errors import RequestError

# Recipe name -> module, imported when it is used, with `prepare(from_path: Path | None, root: Path) -> list[str]`.
RECIPES: dict[str, str] = {
    "brown": "raylingvo.data.prepare.brown",
    "librispeech": "raylingvo.data.prepare.librispeech",
    "lm1b": "raylingvo.data.prepare.lm1b",
    "mnist": "raylingvo.data.prepare.mnist",
    "multi30k": "raylingvo.data.prepare.multi30k",
    "tinyshakespeare": "raylingvo.data.prepare.tinyshakespeare",
    "wmt14_ende": "raylingvo.data.prepare.wmt14_ende",
}


def prepare(name: str, from_path: Path | None = None) -> list[str]:
    """Runs a recipe and returns a line for each file it wrote.

    from_path: the user's file or folder to make the dataset from; None downloads the published one. Raises RequestError
    if there is no such recipe, or what it reads is missing or damaged.
    """
    if name not in RECIPES:
        closest = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4) or sorted(RECIPES)
        raise RequestError(f"no recipe {name!r} to prepare data; closest: {', '.join(closest)}")
    if from_path is not None:
        try:
            from_path = from_path.expanduser()
            from_path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise RequestError(f"--from {from_path} does not exist") from None
        except (OSError, RuntimeError, ValueError) as e:  # no access, ~user of nobody, a zero byte in the name
            raise RequestError(f"cannot read --from {from_path}: {getattr(e, 'strerror', None) or e}") from e
    return importlib.import_module(RECIPES[name]).prepare(from_path, data_root())
