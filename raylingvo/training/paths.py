"""Variables by path: names such as "layers/0/kernel", and the parts of a tree whose names match."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from raylingvo.errors import RequestError

_NUM_SHOWN = 5  # of the paths, in errors


def names(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) for every leaf of nested dicts, in their order. Keys are names, or indices of what was a list."""
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from names(value, f"{path}/")
        else:
            yield path, value


def select(tree: Mapping[Any, Any], keep: Callable[[str], bool], prefix: str = "") -> dict[Any, Any]:
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


def merge(tree: Mapping[Any, Any], part: Mapping[Any, Any]) -> dict[Any, Any]:
    """`tree` with the leaves of `part`, which `select` has taken from a tree of this structure, in their places."""
    merged = dict(tree)
    for name, value in part.items():
        merged[name] = merge(tree[name], value) if isinstance(value, Mapping) else value
    return merged


def with_values(tree: Mapping[Any, Any], values: Mapping[str, Any], prefix: str = "") -> dict[Any, Any]:
    """The nested dicts with these values, by path, in the place of their leaves; others stay."""
    return {
        name: with_values(value, values, f"{prefix}{name}/")
        if isinstance(value, Mapping)
        else values.get(f"{prefix}{name}", value)
        for name, value in tree.items()
    }


def matches(pattern: str | None) -> Callable[[str], bool]:
    """Whether a path has a match of the regular expression somewhere in it (re.search). None: no path has."""
    if pattern is None:
        return lambda path: False
    compiled = re.compile(pattern)
    return lambda path: compiled.search(path) is not None


def check_found(key: str, pattern: str | None, paths: Sequence[str]) -> None:
    """Raises RequestError if the regular expression is found in none of the paths. None: there is none to find.

    key: the dotted key of the expression, for the error.
    """
    if pattern is not None and not any(map(matches(pattern), paths)):
        raise RequestError(f"{key}: {pattern!r} matches no weight; there are {shown(paths)}")


def shown(paths: Sequence[str]) -> str:
    """Some of the paths, for an error."""
    more = f", .. ({len(paths)} in all)" if len(paths) > _NUM_SHOWN else ""
    return ", ".join(paths[:_NUM_SHOWN]) + more


def check_pattern(field: str, pattern: str | None, replacement: str | None = None) -> None:
    """Raises ValueError if `pattern` is not a regular expression, or `replacement` not a template for its matches."""
    try:
        compiled = re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"{field} must be a regular expression: {error} (got {pattern!r})") from error
    # A match of the same groups, if of nothing: what the template refers to is checked when it is expanded.
    groups = "".join(f"(?P<{name}>)" if name else "()" for name in _group_names(compiled))
    try:
        re.match(groups, "").expand(replacement or "")  # pyright: ignore[reportOptionalMemberAccess]
    except (re.error, IndexError) as error:
        raise ValueError(f"{field}: {replacement!r} does not fit {pattern!r}: {error}") from error


def _group_names(pattern: re.Pattern[str]) -> list[str | None]:
    by_index = {index: name for name, index in pattern.groupindex.items()}
    return [by_index.get(index) for index in range(1, pattern.groups + 1)]
