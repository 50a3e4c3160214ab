"""What is in a record of any format: its fields by name, and the text in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raylingvo.data.tf_example import ExampleError, Feature, decode_example, parse_examples


class MissingFieldError(ValueError):
    """A record does not have a field of a name; the message says which it has."""


def as_fields(record: Any) -> Any:
    """The features of a serialized tf.Example as a dict of arrays and lists; any other record as it is."""
    # Every tf.Example with a feature begins with the tag of the only field it has.
    if not isinstance(record, bytes) or not record.startswith(b"\n"):
        return record
    try:
        return decode_example(record)
    except ExampleError:
        return record


def fields_of(record: Any, names: Sequence[str] = ()) -> dict[str, Any]:
    """name -> value of the named fields; of no names, all fields, or {"": the line}.

    record: a dict, a serialized tf.Example, or a line of tab-separated fields, whose names are their numbers, from 0;
    "" is the whole line. Raises MissingFieldError.
    """
    record = as_fields(record)
    if isinstance(record, Mapping):
        parts: Mapping[str, Any] = record
        there = ", ".join(map(str, parts)) or "none"
    elif set(names) <= {""}:
        return {"": record}
    else:
        parts = {str(i): part for i, part in enumerate(record.split(b"\t"))}
        there = f"{len(parts)} tab-separated, numbered from 0"
        parts[""] = record
    for name in names:
        if name not in parts:
            raise MissingFieldError(f"there is no field {name!r}; it has {there}")
    return {name: parts[name] for name in names} if names else dict(parts)


def field(record: Any, name: str) -> Any:
    """The value of one field, as for `fields_of`."""
    return fields_of(record, (name,))[name]


def text_of(value: Any) -> str | None:
    """The text that a value is: a string, UTF-8 bytes without a zero, or a list of one such bytes; else None."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], bytes):
        value = value[0]  # a text in a tf.Example
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None
        return value if "\0" not in value else None
    return value if isinstance(value, str) else None


def text(record: Any, name: str) -> str:
    """The text in one field, as for `fields_of`. Raises MissingFieldError, or ValueError if it is no text."""
    value = field(record, name)
    found = text_of(value)
    if found is None:
        raise ValueError(f"field {name!r} is not text (got {_short(value)})")
    return found


def examples(serialized: Sequence[bytes], features: Mapping[str, Feature]) -> list[dict[str, Any]]:
    """As `parse_examples`; a required feature that is missing raises MissingFieldError, which says what there is."""
    try:
        return parse_examples(serialized, features)
    except ExampleError:
        required = [name for name, feature in features.items() if feature.default is None]
        for example in serialized:
            fields_of(decode_example(example), required)
        raise


def _short(value: Any) -> str:
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 40 else f"{shown[:36]} .."
