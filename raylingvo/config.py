"""Configs as data: frozen dataclass trees that can be overridden by dotted key, dumped, loaded, flattened and compared.

A field may hold bool, int, float (finite), str, None, an enum, a Literal, tuples, lists and string-keyed mappings of
these, and other dataclasses. A field declared as a base class may hold any dataclass derived from it; where a node's
class is not the declared one, the text forms name it under the key `class`.

Every wrong request raises RequestError with one line that has the dotted key, the value, and what was expected.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from raylingvo._config import text as config_text
from raylingvo._config.frozen_dict import FrozenDict as FrozenDict
from raylingvo._config.messages import join, unknown_key
from raylingvo._config.nodes import CLASS, Node, class_name
from raylingvo._config.types import Container, FieldType, List, Map
from raylingvo.errors import RequestError

Config = TypeVar("Config")

_EVERY = "*"  # in a key: every name in a mapping, every position in a list


def parse_assignments(assignments: Iterable[str]) -> dict[str, str]:
    """`KEY=VALUE` texts as a dict, for `override`; of a key given twice, the last value counts.

    Raises RequestError if a text has no `=`, or nothing before it.
    """
    parsed = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not (equals and key.strip()):
            raise RequestError(f"expected KEY=VALUE, such as train.batch_size=64 (got {assignment!r})")
        parsed[key.strip()] = value
    return parsed


def override(config: Config, overrides: Mapping[str, Any]) -> Config:
    """`config` with the values at some dotted keys replaced.

    overrides: key -> value. A key names fields, names in mappings and positions in lists: `eval.test.policy`. Replacing
    a whole goes before replacing its parts. A new name may be added to a mapping, and a field of an optional dataclass
    that is None may be given. A `*` stands for each name in a mapping or position in a list, as far as the rest of the
    key exists there: `datasets.*.path`; a key without `*` counts more. The value is a Python value of the field's type,
    or text as on a command line:
        true, 3e-4, every    bool, int or float, str, a Literal, the name of an enum's member
        none, null           None, for an optional field (also for an optional str)
        [1, 2], {a: 1}       YAML, for a list, a mapping, or a dataclass. For a dataclass, `class` names its class
                             (default: the declared class, or if that is abstract, the present one); fields that are
                             not given get their defaults.
    All values are replaced before any dataclass is constructed, so values that only fit together can be given together.

    Raises RequestError for an unknown key (naming the closest ones), a value that is not of the field's type, or values
    that a dataclass refuses by a ValueError.
    """
    root = Node(type(config))
    value: Any = config
    for key in sorted(overrides, key=_order):
        try:
            value = _assign(root, value, key, overrides[key], "")
        except _NoSuchPartError as error:
            keys = dict(_keys(root, value)) | error.siblings
            raise unknown_key(key, overrides[key], keys, error.parent) from None
    return root.build(value, "", complete=False)


def dump(config: Any) -> str:
    """`config` as YAML: every field, in the order of the dataclasses; `load` gives it back, equal.

    The class of the config itself is not written: `load` is told. Raises RequestError if a value is not of its field's
    type, or the class of a node cannot be imported by its name.
    """
    root = Node(type(config))
    plain = root.plain(config)
    root.build(plain, "", complete=True)  # what cannot be loaded is not written
    return config_text.write_block(plain)


def load(text: str, cls: type[Config]) -> Config:
    """The config of class `cls` that `dump` wrote as `text`. It imports the modules of the classes named in it.

    Raises RequestError if `text` is not YAML, a key is unknown or missing (those with a default too: a record of a run
    must not change with the defaults), a value is not of its field's type, or a class is not one for its field.
    """
    return Node(cls).build(config_text.read_yaml(text), "", complete=True)


def flatten(config: Any) -> dict[str, Any]:
    """Dotted key -> leaf, in the order of `dump`.

    Leaves are scalars (an enum by name), None, tuples of scalars, and what is empty; `KEY.class` is the name of the
    class of a node whose class is not the declared one.
    """
    return dict(_leaves(Node(type(config)).plain(config), ""))


def params_text(config: Any) -> str:
    """A line `dotted.key : value` for every leaf, sorted; values as in YAML."""
    return "".join(f"{key} : {config_text.write_inline(value)}\n" for key, value in sorted(flatten(config).items()))


def diff(a: Any, b: Any) -> list[str]:
    """The differences of two configs, none if they are equal.

    Lines `key: in a -> in b`, `- key: only in a`, `+ key: only in b`, in the order of `dump`; values as in YAML.
    """
    old, new = ({CLASS: class_name(type(config))} | flatten(config) for config in (a, b))
    old, new = ({key: config_text.write_inline(value) for key, value in leaves.items()} for leaves in (old, new))
    lines = []
    for key in old | new:
        if key not in new:
            lines.append(f"- {key}: {old[key]}")
        elif key not in old:
            lines.append(f"+ {key}: {new[key]}")
        elif old[key] != new[key]:
            lines.append(f"{key}: {old[key]} -> {new[key]}")
    return lines


class _NoSuchPartError(Exception):
    """A key leads to a part that does not exist.

    parent: the key of the container. siblings: the keys of its parts, with their types in words.
    """

    def __init__(self, parent: str, siblings: dict[str, str]) -> None:
        super().__init__(parent)
        self.parent, self.siblings = parent, siblings


def _assign(type_: FieldType, value: Any, key: str | None, given: Any, at: str) -> Any:
    """`value`, whose own key is `at`, with `given` in place of its part `key` (None: of the whole)."""
    if key is None:
        read = type_.read(given, at) if isinstance(given, str) else given
        return type_.keep_class(type_.check(read, at), value)
    opened = type_.open(value)
    if opened is None:
        raise _NoSuchPartError(at, {})
    container, parts = opened
    types = container.part_types(parts, at)
    name, rest = _split(key, types)
    if name == _EVERY and name not in types and isinstance(container, List | Map):
        return _assign_to_every(container, parts, types, rest, given, at)
    part_type = types.get(name)
    if part_type is None and name and rest is None:
        part_type = container.new_part
    if part_type is None and name == CLASS:
        raise RequestError(f"{join(at, CLASS)} cannot change by itself; give {at or 'the config'}={{class: NAME, ...}}")
    if part_type is None:
        raise _NoSuchPartError(at, {join(at, part): types[part].expected for part in types})
    parts[name] = _assign(part_type, parts.get(name), rest, given, join(at, name))
    return container.close(parts)


def _assign_to_every(
    container: Container, parts: dict[str, Any], types: Mapping[str, FieldType], rest: str | None, given: Any, at: str
) -> Any:
    """The container with `given` in place of the part `rest` of each of its parts that has one; one must."""
    assigned, missing = 0, _NoSuchPartError(at, {})
    for name, part_type in types.items():
        try:
            parts[name] = _assign(part_type, parts[name], rest, given, join(at, name))
            assigned += 1
        except _NoSuchPartError as error:
            missing = error
    if not assigned:
        raise missing
    return container.close(parts)


def _order(key: str) -> tuple[int, int]:
    """Where a key stands among those that are assigned one after the other: what counts more comes later."""
    return key.count("."), -key.split(".").count(_EVERY)


def _split(key: str, names: Iterable[str]) -> tuple[str, str | None]:
    """The first name of a dotted key, and the rest. Names in mappings may have dots, such as Ray's `node:10.0.0.1`."""
    known = [name for name in names if f"{key}.".startswith(f"{name}.")]
    name = max(known, key=len) if known else key.partition(".")[0]
    return name, key[len(name) + 1 :] if len(key) > len(name) else None


def _keys(type_: FieldType, value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """The keys below `at`, with their types in words."""
    opened = None if value is None else type_.open(value)
    if opened is not None:
        container, parts = opened
        for name, part_type in container.part_types(parts, at).items():
            key = join(at, name)
            yield key, part_type.expected
            yield from _keys(part_type, parts.get(name), key)


def _leaves(plain: Any, at: str) -> Iterator[tuple[str, Any]]:
    if not plain or not config_text.holds_mapping(plain):
        yield at, plain
    else:
        for name, part in plain.items() if isinstance(plain, Mapping) else enumerate(plain):
            yield from _leaves(part, join(at, name))
