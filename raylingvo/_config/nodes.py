"""Dataclasses as field types: what the annotations of their fields mean, and how their class is written."""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import inspect
import operator
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from raylingvo._config.frozen_dict import FrozenDict
from raylingvo._config.messages import echo, join, unknown_key
from raylingvo._config.types import SCALARS, Choice, Container, EnumType, FieldType, List, Map, Union
from raylingvo.errors import RequestError

# The name, in a dataclass' plain form, of its class. No field can have it: it is a keyword.
CLASS = "class"


class Node(Container):
    """A dataclass, `declared` or a subclass; the parts are the fields.

    The plain form names the class, under CLASS, unless it is `declared` itself.
    """

    shape = "mapping"

    def __init__(self, declared: type) -> None:
        self._declared = declared
        start = f"{CLASS}: NAME, " if inspect.isabstract(declared) else ""
        article = "an" if declared.__name__[0] in "AEIOU" else "a"
        self.expected = f"{article} {declared.__name__}, {{{start}field: value, ...}}"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, self._declared | Mapping)

    def plain(self, value: Any) -> Any:
        if not isinstance(value, self._declared):
            return value
        cls = type(value)
        fields = {name: type_.plain(getattr(value, name)) for name, type_ in field_types(cls).items()}
        return fields if cls is self._declared else {CLASS: class_name(cls), **fields}

    def build(self, value: Any, key: str, *, complete: bool) -> Any:
        if isinstance(self.check(value, key), self._declared):
            return value
        cls = self._class(value, key)
        fields = field_types(cls)
        given = {name: part for name, part in value.items() if name != CLASS}
        for name, part in given.items():
            if name not in fields:
                raise unknown_key(join(key, name), part, {join(key, f): t.expected for f, t in fields.items()}, key)
        for name, type_ in fields.items():
            if name not in given and (complete or name in _required(cls)):
                raise RequestError(f"{join(key, name)} is missing: expected {type_.expected}")
        parts = {name: fields[name].build(part, join(key, name), complete=complete) for name, part in given.items()}
        try:
            return cls(**parts)
        except ValueError as error:
            raise RequestError(_placed(str(error), key, fields)) from error

    def open(self, value: Any) -> tuple[Container, dict[str, Any]]:
        if isinstance(value, Mapping):
            return self, dict(value)
        return self, {CLASS: type(value)} | {name: getattr(value, name) for name in field_types(type(value))}

    def part_types(self, parts: Mapping[str, Any], key: str) -> Mapping[str, FieldType]:
        return field_types(self._class(parts, key))

    def close(self, parts: dict[str, Any]) -> Any:
        return parts

    def keep_class(self, value: Any, current: Any) -> Any:
        if current is not None and isinstance(value, Mapping) and inspect.isabstract(self._declared):
            return {CLASS: self.open(current)[1].get(CLASS), **value}
        return value

    def has_a_field(self, parts: Mapping[str, Any]) -> bool:
        """Whether one of the parts can be one of the dataclass, its class included."""
        return CLASS in parts or any(name in field_types(self._declared) for name in parts)

    def _class(self, parts: Mapping[str, Any], key: str) -> type:
        """The class that the parts name, else the declared one. Raises RequestError if the field cannot hold it."""
        named = parts.get(CLASS, self._declared)
        try:
            cls = import_class(named) if isinstance(named, str) else named
        except RequestError as error:
            raise RequestError(f"{join(key, CLASS)}: {error}; {self._advice()}") from error
        if isinstance(cls, type) and issubclass(cls, self._declared) and _is_concrete(cls):
            return cls
        if CLASS not in parts:
            raise RequestError(f"{join(key, CLASS)} is missing: {self._advice()}")
        raise RequestError(f"{join(key, CLASS)}: {self._advice()} (got {echo(named)})")

    def _advice(self) -> str:
        known = [name for cls in _subclasses(self._declared) if _is_concrete(cls) and _is_name(name := class_name(cls))]
        expected = f"expected the name of a dataclass that is a {class_name(self._declared)}"
        return f"{expected}, such as {', '.join(known[:5])}" if known else expected


class NodeOrMap(FieldType):
    """A dataclass, or a mapping from names to such dataclasses: X | Mapping[str, X].

    In the plain form, where both are mappings, it is a dataclass if a key is CLASS or the name of a field of X, or if
    there is no key.
    """

    shape = "mapping"

    def __init__(self, node: Node, named: Map) -> None:
        self._node, self._map = node, named
        self.expected = f"{node.expected}, or names of such, {{name: {{field: value, ...}}, ...}}"

    def _type(self, value: Any) -> Container:
        is_map = isinstance(value, Mapping) and value and not self._node.has_a_field(value)
        return self._map if is_map else self._node

    def accepts(self, value: Any) -> bool:
        return self._type(value).accepts(value)

    def read(self, text: str, key: str) -> Any:
        return self._node.read(text, key)

    def plain(self, value: Any) -> Any:
        return self._type(value).plain(value)

    def build(self, value: Any, key: str, *, complete: bool) -> Any:
        return self._type(value).build(self.check(value, key), key, complete=complete)

    def open(self, value: Any) -> tuple[Container, dict[str, Any]] | None:
        return self._type(value).open(value)

    def keep_class(self, value: Any, current: Any) -> Any:
        types = self._type(value), self._type(current)
        return types[0].keep_class(value, current) if types[0] is types[1] else value


def field_type(hint: Any) -> FieldType:
    """The field type of a resolved annotation. Raises TypeError if a config cannot hold such values."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in SCALARS:
        return SCALARS[hint]
    if origin is typing.Literal and all(type(arg) in (type(None), bool, int, str) for arg in args):
        return Choice(args)
    if origin in (typing.Union, types.UnionType):
        if isinstance(args[0], type) and dataclasses.is_dataclass(args[0]) and args[1:] == (Mapping[str, args[0]],):
            return NodeOrMap(Node(args[0]), Map(FrozenDict, Node(args[0])))
        return Union([field_type(arg) for arg in args])
    if origin is tuple and args[-1:] != (...,):
        return List(tuple, [field_type(arg) for arg in args])
    if origin in (tuple, list, Sequence):
        return List(list if origin is list else tuple, field_type(args[0]))
    if origin in (Mapping, dict, FrozenDict) and args[0] is str:
        return Map(dict if origin is dict else FrozenDict, field_type(args[1]))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return EnumType(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return Node(hint)
    raise TypeError(
        f"a config cannot hold {hint}, only bool, int, float, str, enums, dataclasses, "
        "Literal[...], X | None, tuple[X, ...], list[X] and Mapping[str, X]"
    )


@functools.cache
def field_types(cls: type) -> Mapping[str, FieldType]:
    """The types of a dataclass' fields by name, in order, without those that its constructor does not take.

    Raises TypeError, naming the field, if a config cannot hold its values.
    """
    hints = typing.get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        if field.init:
            try:
                found[field.name] = field_type(hints[field.name])
            except TypeError as error:
                raise TypeError(f"{class_name(cls)}.{field.name}: {error}") from error
    return found


def class_name(cls: type) -> str:
    """The dotted name under which `import_class` finds `cls`."""
    return f"{cls.__module__}.{cls.__qualname__}"


def import_class(name: str) -> Any:
    """What has this dotted name; its module is the longest beginning that is one.

    A config may be somebody else's, and to import a module is to run it. Modules that can have no configs but do things
    when they are imported are not: those of the standard library (`antigravity`), and each package's `__main__`.
    Raises RequestError for these, and if there is no such thing, or its module cannot be imported.
    """
    if not _is_name(name):
        raise RequestError(f"{name!r} is not the dotted name of a class")
    if name.startswith("__main__."):
        raise RequestError(f"cannot import {name!r} in another process: move it from the script to a module")
    parts = name.split(".")
    if parts[0] in sys.stdlib_module_names or "__main__" in parts:
        raise RequestError(f"cannot import {name!r}: neither the standard library nor a __main__ has configs")
    for length in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:length])
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing and f"{module_name}.".startswith(f"{missing}."):
                continue  # it is a class in a module with a shorter name; all other errors are the module's own
            raise RequestError(f"cannot import {name!r}: {' '.join(str(error).split())}") from error
        try:
            return operator.attrgetter(".".join(parts[length:]))(module)
        except AttributeError as error:
            raise RequestError(f"cannot import {name!r}: {error}") from error
    raise RequestError(f"cannot import {name!r}: no module {parts[0]}")


def _is_name(name: str) -> bool:
    return "." in name and all(part.isidentifier() for part in name.split("."))  # a local class has none


def _placed(message: str, key: str, fields: Mapping[str, FieldType]) -> str:
    """A dataclass' own message about its fields, on one line, with the node's key before the name of a field."""
    message = " ".join(message.split())
    first = re.match(r"\w+", message)
    if not key or (first and first[0] in fields):
        return join(key, message)
    return f"{key}: {message}"


def _required(cls: type) -> set[str]:
    missing = dataclasses.MISSING
    return {f.name for f in dataclasses.fields(cls) if f.default is missing and f.default_factory is missing}


def _is_concrete(cls: type) -> bool:
    return dataclasses.is_dataclass(cls) and not inspect.isabstract(cls)


def _subclasses(cls: type) -> list[type]:
    return [found for child in cls.__subclasses__() for found in (child, *_subclasses(child))]
