"""Where datasets live on disk: the data root that RAYLINGVO_DATA names."""

from __future__ import annotations

import os
from pathlib import Path

from raylingvo.errors import RequestError


def data_root() -> Path:
    """The absolute folder that dataset paths are relative to.

    RAYLINGVO_DATA if it is set and not empty, else `raylingvo/data` in the user's cache ($XDG_CACHE_HOME or ~/.cache).
    """
    if configured := os.environ.get("RAYLINGVO_DATA"):
        return Path(configured).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (cache.expanduser() / "raylingvo" / "data").absolute()


def resolve(path: str) -> Path:
    """`path` under the data root; an absolute path, or one that starts with ~, stays where it points."""
    return data_root() / Path(path).expanduser()


def not_found(path: str, prepare: str = "") -> RequestError:
    """The error for a dataset file that is not there.

    prepare: the recipe that makes it, an argument of `raylingvo data prepare`; empty if there is none.
    """
    fix = f"run: raylingvo data prepare {prepare}" if prepare else "put it there, or set RAYLINGVO_DATA to its folder"
    return RequestError(f"{path} not found under RAYLINGVO_DATA={data_root()}; {fix}")
