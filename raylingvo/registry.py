"""Experiments by name: `@register`, and lazy import by dotted name."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

from raylingvo.errors import RequestError
from raylingvo.experiment import Experiment

_BUILT_IN = "raylingvo.models"
_registry: dict[str, Callable[[], Experiment]] = {}


def register(name: str) -> Callable[[Callable[[], Experiment]], Callable[[], Experiment]]:
    """Registers a function of no arguments that returns an Experiment under `family.module.Name`.

    The name is the one `get` takes, and says where the function lives: `get("my.module.MyModel")` imports `my.module`
    (from raylingvo's own families first, then from any importable package or the current directory).
    Raises ValueError if the name has no dot or another function has it.
    """
    if "." not in name:
        raise ValueError(f"an experiment's name must be module.Name (got {name!r})")

    def add(function: Callable[[], Experiment]) -> Callable[[], Experiment]:
        known = _registry.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (function.__module__, function.__qualname__):
            raise ValueError(f"{name!r} is registered twice: {_where(known)} and {_where(function)}")
        _registry[name] = function
        return function

    return add


def get(name: str) -> Experiment:
    """The registered experiment of that name.

    Raises RequestError, with the closest names, if there is none, or with the place in the code if it cannot be made.
    """
    if name not in _registry:
        _import_module_of(name)
    if name not in _registry:
        close = _closest(name)
        hint = f"did you mean {' or '.join(close)}?" if close else "`raylingvo list` shows what there is"
        raise RequestError(f"no experiment {name!r}; {hint}")
    function = _registry[name]
    try:
        experiment = function()
    except Exception as error:  # in the user's own code: whatever it is, the experiment asked for does not exist
        raise RequestError(
            f"experiment {name!r} cannot be made: {_cause(error, inspect.getsourcefile(function))}"
        ) from error
    if not isinstance(experiment, Experiment):
        raise RequestError(f"{_where(function)} must return an Experiment (got {type(experiment).__name__})")
    return dataclasses.replace(experiment, name=name)


def names() -> list[str]:
    """Every registered name, sorted: raylingvo's own families (imported now) and what has been imported besides."""
    package = importlib.import_module(_BUILT_IN)
    for module in pkgutil.walk_packages(package.__path__, prefix=f"{_BUILT_IN}."):
        importlib.import_module(module.name)
    return sorted(_registry)


def find(pattern: str = "") -> dict[str, str]:
    """Name -> first line of the docstring, of the experiments whose name contains, or as a glob matches, `pattern`.

    Raises RequestError if there is none.
    """
    wanted = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    found = [name for name in names() if fnmatch.fnmatchcase(name.lower(), wanted.lower())]
    if not found:
        close = _closest(pattern)
        hint = f"closest: {', '.join(close)}" if close else "`raylingvo list` shows what there is"
        raise RequestError(f"no experiment matches {pattern!r}; {hint}")
    return {name: (_registry[name].__doc__ or "").strip().partition("\n")[0] for name in found}


def import_current_directory() -> None:
    """Makes modules in the current directory importable, after all others."""
    if (current := str(Path.cwd())) not in sys.path:
        sys.path.append(current)


def _import_module_of(name: str) -> None:
    module = name.rpartition(".")[0]
    if not all(part.isidentifier() for part in module.split(".")):
        return
    import_current_directory()
    for candidate in (f"{_BUILT_IN}.{module}", module):
        spec = None
        try:
            if (spec := _find(candidate)) is None:
                continue
            importlib.import_module(candidate)
        except Exception as error:  # as in `get`
            raise RequestError(f"{candidate} cannot be imported: {_cause(error, spec and spec.origin)}") from error
        if name in _registry:
            return


def _find(module: str) -> ModuleSpec | None:
    """Where `module` is, or None; imports its parents, and raises what they raise."""
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}."):
            return None  # a parent does not exist, or is not a package
        raise


def _closest(name: str) -> list[str]:
    """Up to three registered names that are like `name`, or have a part like it: people forget where LeNet5 lives."""
    by_text: dict[str, list[str]] = {}
    for other in names():
        for text in (other, *other.split(".")):
            by_text.setdefault(text.lower(), []).append(other)
    wanted = name.lower()
    texts = [
        *difflib.get_close_matches(wanted, by_text, n=3, cutoff=0.6),
        *difflib.get_close_matches(wanted.rpartition(".")[2], by_text, n=1, cutoff=0.8),
    ]
    return list(dict.fromkeys(other for text in texts for other in by_text[text]))[:3]


def _cause(error: Exception, file: str | None) -> str:
    """The error in one line, and the line of the user's file that led to it."""
    text = " ".join(str(error).split())
    what = text if isinstance(error, RequestError) else f"{type(error).__name__}: {text}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{what} ({file}:{lines[-1]})" if lines else what


def _where(function: Callable[[], Experiment]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
