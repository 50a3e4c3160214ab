"""What a field of a config may hold: how values of each annotation are checked, read from text, and written.

A value has two forms. The *Python form* is what the dataclass holds. The *plain form* is what YAML can hold: an enum is
its name, a dataclass a mapping of its fields. `FieldType` converts between them. Its methods take either form, or a
mixture, so that a change to one part of a tree leaves the other parts alone. Dataclasses are in nodes.py.
"""

from __future__ import annotations

import abc
import enum
import math
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raylingvo._config import text as config_text
from raylingvo._config.messages import echo, join, wrong_value
from raylingvo.errors import RequestError

_Test = Callable[[Any], bool]


class FieldType(abc.ABC):
    """The type of a field."""

    shape: str  # of the plain form; the members of a union must differ in it
    expected: str  # the type, in words

    @abc.abstractmethod
    def accepts(self, value: Any) -> bool:
        """Whether `value` is of this type, seen from outside: the parts of a container are not looked at."""

    @abc.abstractmethod
    def read(self, text: str, key: str) -> Any:
        """The value that `text`, from a command line, denotes; `text` itself if it is not of this type."""

    @abc.abstractmethod
    def plain(self, value: Any) -> Any:
        """The plain form of `value`, down to the leaves. What is not of this type stays, for `build` to refuse."""

    @abc.abstractmethod
    def build(self, value: Any, key: str, *, complete: bool) -> Any:
        """The Python form of `value`.

        complete: whether every field must be given, those with a default too.
        Raises RequestError, with the dotted key, if it or a part is not of its type, or a dataclass refuses its fields.
        """

    def open(self, value: Any) -> tuple[Container, dict[str, Any]] | None:
        """The container that `value` is, and its parts by name, not converted; None for a leaf."""
        return None

    def keep_class(self, value: Any, current: Any) -> Any:
        """`value`, which is to replace `current`: a dataclass that does not say its class may keep the current one."""
        return value

    def check(self, value: Any, key: str) -> Any:
        """`value`. Raises RequestError if it is not of this type, seen from outside."""
        if not self.accepts(value):
            raise wrong_value(key, self.expected, value)
        return value


class Leaf(FieldType):
    """A scalar; `convert` makes the exact Python type of what is accepted, which is its plain form too."""

    def __init__(self, shape: str, expected: str, accepts: _Test, convert: Callable[[Any], Any]) -> None:
        self.shape, self.expected, self._accepts, self._convert = shape, expected, accepts, convert

    def accepts(self, value: Any) -> bool:
        return self._accepts(value)

    def read(self, text: str, key: str) -> Any:
        value = config_text.read_scalar(text)
        return value if self.accepts(value) else text

    def plain(self, value: Any) -> Any:
        return self._convert(value) if self.accepts(value) else value

    def build(self, value: Any, key: str, *, complete: bool) -> Any:
        return self._convert(self.check(value, key))


class Null(Leaf):
    """None, the absent value of an optional field; as text, `none` or `null`."""

    def __init__(self) -> None:
        super().__init__("null", "null", lambda value: value is None, lambda value: value)

    def read(self, text: str, key: str) -> Any:
        return None if text in ("none", "null") else text


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)  # numpy's integers too


def _is_finite(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, numbers.Real) and math.isfinite(value)  # numpy's numbers too


SCALARS: Mapping[type, FieldType] = {
    type(None): Null(),
    bool: Leaf("bool", "true or false", lambda value: isinstance(value, bool), bool),
    int: Leaf("int", "an int", _is_integer, int),
    float: Leaf("float", "a finite float", _is_finite, float),
    str: Leaf("str", "a str", lambda value: isinstance(value, str), str),
}


class Choice(FieldType):
    """typing.Literal: one of some scalars."""

    shape = "choice"

    def __init__(self, choices: Sequence[bool | int | str | None]) -> None:
        self._by_text = {config_text.write_inline(choice): choice for choice in choices}
        self.expected = f"one of {', '.join(self._by_text)}"

    def accepts(self, value: Any) -> bool:
        # The types are compared because 1 == True.
        return any(type(value) is type(choice) and value == choice for choice in self._by_text.values())

    def read(self, text: str, key: str) -> Any:
        # A string may be given as it is, or quoted as YAML would have it: 'true' is not true.
        return self._by_text.get(text, text)

    def plain(self, value: Any) -> Any:
        return value

    def build(self, value: Any, key: str, *, complete: bool) -> Any:
        return self.check(value, key)


class EnumType(FieldType):
    """An enum; its plain form is the member's name."""

    shape = "str"

    def __init__(self, cls: type[enum.Enum]) -> None:
        self._cls = cls
        self.expected = f"one of {', '.join(cls.__members__)}"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, self._cls) or (isinstance(value, str) and value in self._cls.__members__)

    def read(self, text: str, key: str) -> Any:
        return text

    def plain(self, value: Any) -> Any:
        return value.name if isinstance(value, self._cls) else value

    def build(self, value: Any, key: str, *, complete: bool) -> Any:
        self.check(value, key)
        return value if isinstance(value, self._cls) else self._cls[value]


class Union(FieldType):
    """A union of types whose plain forms differ in shape, most often of one type and None.

    Raises TypeError if two members have the same shape.
    """

    shape = "union"
    # In which order members are asked: int before float, which takes ints too; str, which takes every text, last.
    _ORDER = ("null", "bool", "int", "float", "choice", "list", "mapping", "str")

    def __init__(self, members: Sequence[FieldType]) -> None:
        if len({member.shape for member in members}) < len(members):
            raise TypeError("members of a union must not be written alike; give dataclasses a common base class")
        self._members = sorted(members, key=lambda member: self._ORDER.index(member.shape))
        self.expected = " or ".join(member.expected for member in members)

    def _member(self, value: Any) -> FieldType | None:
        return next((member for member in self._members if member.accepts(value)), None)

    def accepts(self, value: Any) -> bool:
        return self._member(value) is not None

    def read(self, text: str, key: str) -> Any:
        for member in self._members:
            value = member.read(text, key)
            if member.accepts(value):
                return value
        return text

    def plain(self, value: Any) -> Any:
        member = self._member(value)
        return member.plain(value) if member else value

    def build(self, value: Any, key: str, *, complete: bool) -> Any:
        member = self._member(value)
        if member is None:
            raise wrong_value(key, self.expected, value)
        return member.build(value, key, complete=complete)

    def open(self, value: Any) -> tuple[Container, dict[str, Any]] | None:
        if value is None:  # the parts of an absent mapping can be given one by one
            return next((member.open({}) for member in self._members if member.shape == "mapping"), None)
        member = self._member(value)
        return member.open(value) if member else None

    def keep_class(self, value: Any, current: Any) -> Any:
        member = self._member(value)
        return member.keep_class(value, current) if member else value


class Container(FieldType):
    """A type whose values have parts; as text, YAML in brackets."""

    # The type of parts that can be added one by one; None if there are none.
    new_part: FieldType | None = None

    @abc.abstractmethod
    def part_types(self, parts: Mapping[str, Any], key: str) -> Mapping[str, FieldType]:
        """The types of the parts of an opened value, whose key is `key`, and of those that may be given."""

    @abc.abstractmethod
    def close(self, parts: dict[str, Any]) -> Any:
        """The value with these parts: the reverse of `open`."""

    def read(self, text: str, key: str) -> Any:
        if not text.lstrip().startswith(("[", "{")):
            return text
        try:
            return config_text.read_yaml(text)
        except RequestError as error:
            raise RequestError(f"{key}: {error} (got {echo(text)})") from error


class List(Container):
    """tuple[X, ...], tuple[X, Y], list[X] or Sequence[X]; the parts are named 0, 1, ..."""

    shape = "list"

    def __init__(self, make: Callable[[list[Any]], Any], items: FieldType | Sequence[FieldType]) -> None:
        """items: the type of every item, or one type for each."""
        self._make, self._items = make, items
        if isinstance(items, FieldType):
            self.expected = f"a list, [...], each item {items.expected}"
        else:
            self.expected = f"a list of {len(items)}, [{', '.join(item.expected for item in items)}]"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, list | tuple) and (
            isinstance(self._items, FieldType) or len(value) == len(self._items)
        )

    def plain(self, value: Any) -> Any:
        if not self.accepts(value):
            return value
        types = self.part_types(self.open(value)[1], "")
        return tuple(type_.plain(item) for type_, item in zip(types.values(), value, strict=True))

    def build(self, value: Any, key: str, *, complete: bool) -> Any:
        container, parts = self.open(self.check(value, key))
        types = container.part_types(parts, key)
        return self._make([types[i].build(item, join(key, i), complete=complete) for i, item in parts.items()])

    def open(self, value: Any) -> tuple[Container, dict[str, Any]]:
        return self, {str(i): item for i, item in enumerate(value)}

    def part_types(self, parts: Mapping[str, Any], key: str) -> Mapping[str, FieldType]:
        types = [self._items] * len(parts) if isinstance(self._items, FieldType) else self._items
        return dict(zip(parts, types, strict=True))

    def close(self, parts: dict[str, Any]) -> Any:
        return list(parts.values())


class Map(Container):
    """Mapping[str, X] or dict[str, X]; the parts are the values."""

    shape = "mapping"

    def __init__(self, make: Callable[[dict[str, Any]], Any], values: FieldType) -> None:
        self._make, self.new_part, self._values = make, values, values
        self.expected = f"a mapping, {{name: value, ...}}, each value {values.expected}"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, Mapping)

    def plain(self, value: Any) -> Any:
        return {name: self._values.plain(item) for name, item in value.items()} if self.accepts(value) else value

    def build(self, value: Any, key: str, *, complete: bool) -> Any:
        for name in self.check(value, key):
            if not isinstance(name, str):
                raise wrong_value(key, "names that are strings", name)
        items = value.items()
        return self._make({name: self._values.build(item, join(key, name), complete=complete) for name, item in items})

    def open(self, value: Any) -> tuple[Container, dict[str, Any]]:
        return self, dict(value)

    def part_types(self, parts: Mapping[str, Any], key: str) -> Mapping[str, FieldType]:
        return dict.fromkeys(parts, self._values)

    def close(self, parts: dict[str, Any]) -> Any:
        return parts
