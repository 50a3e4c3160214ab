"""What is said about a wrong key or value."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from raylingvo.errors import RequestError

_CLOSE = 0.7  # below it, similar names are noise


def join(key: str, name: object) -> str:
    """The dotted key of the part `name` of `key`; the root's key is empty."""
    return f"{key}.{name}" if key else str(name)


def echo(value: object) -> str:
    """`value` as it appears in a message: on one line, the end of a long one left out."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def wrong_value(key: str, expected: str, value: object) -> RequestError:
    """The error for a value that is not of its field's type."""
    return RequestError(f"{key}{': ' if key else ''}expected {expected} (got {echo(value)})")


def unknown_key(key: str, value: object, keys: Mapping[str, str], parent: str) -> RequestError:
    """The error for a key that does not exist.

    keys: the real keys among which to look for the closest, with their types in words. parent: the longest beginning of
    `key` that exists ("" for the root); if nothing is close, the message lists its parts.
    """
    ranked = sorted(((_closeness(key, other), other) for other in keys if other != parent), reverse=True)
    # Keys of one long path are all alike: what is far behind the best is left out.
    near = [other for (score, _), other in ranked if score >= max(_CLOSE, ranked[0][0][0] - 0.15)]
    if near:
        hint = f"did you mean {' or '.join(f'{other} ({keys[other]})' for other in near[:3])}?"
    else:
        start = join(parent, "")
        parts = [other.removeprefix(start) for other in keys if other.startswith(start)]
        hint = f"{parent or 'the config'} has {', '.join(part for part in parts if '.' not in part) or 'no parts'}"
    return RequestError(f"unknown key {key} (got {echo(value)}); {hint}")


def _closeness(key: str, other: str) -> tuple[float, float]:
    """How alike two keys are, 0 to 1: by their last names or as a whole, whichever is more; then as a whole."""
    whole = difflib.SequenceMatcher(None, key, other).ratio()
    last, other_last = key.rpartition(".")[2], other.rpartition(".")[2]
    if len(last) > 1 and last == "".join(word[:1] for word in other_last.split("_")):
        return 0.95, whole  # initials: lr, the learning_rate
    return max(whole, difflib.SequenceMatcher(None, last, other_last).ratio()), whole
