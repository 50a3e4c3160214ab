"""Variables by path: names such as "layers/0/kernel", and the parts of a tree whose names match."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Name = str | int  # of an attribute or of an item of a list


def names(tree: Mapping[Name, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) for every leaf of nested dicts, in their order."""
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from names(value, f"{path}/")
        else:
            yield path, value


def select(tree: Mapping[Name, Any], keep: Callable[[str], bool], prefix: str = "") -> dict[Name, Any]:
    """The nested dicts with the leaves whose path is kept, without dicts that hold none."""
    selected = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            if part := select(value, keep, f"{path}/"):
                selected[name] = part
        elif keep(path):
            selected[name] = value
    return selected


def merge(tree: Mapping[Name, Any], part: Mapping[Name, Any]) -> dict[Name, Any]:
    """`tree` with the leaves of `part`, which `select` has taken from a tree of this structure, in their places."""
    merged = dict(tree)
    for name, value in part.items():
        merged[name] = merge(tree[name], value) if isinstance(value, Mapping) else value
    return merged


def matches(pattern: str | None) -> Callable[[str], bool]:
    """Whether a path has a match of the regular expression somewhere in it (re.search). None: no path has."""
    if pattern is None:
        return lambda path: False
    compiled = re.compile(pattern)
    return lambda path: compiled.search(path) is not None


def check_pattern(field: str, pattern: str | None) -> None:
    """Raises ValueError if `pattern` is not a regular expression."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"{field} must be a regular expression: {error} (got {pattern!r})") from error
