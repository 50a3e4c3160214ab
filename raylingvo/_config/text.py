"""Plain data (None, bool, int, float, str, lists and mappings of them) as YAML text, without loss.

Reading follows YAML 1.2's core schema: `3e-4` is a float, `yes` and `1:30` are strings. Writing quotes every string
that either YAML 1.1 or 1.2 would take for something else, so that any YAML reader sees the same data.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Hashable, Mapping
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from raylingvo.errors import RequestError

_TAG = "tag:yaml.org,2002:"
_NULL = re.compile(r"null|~|")
_BOOL = re.compile(r"true|false")
_INT = re.compile(r"[-+]?[0-9]{1,4300}")  # Python converts no longer ones
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def read_scalar(text: str) -> bool | int | float | str:
    """The bool, int or float that `text` denotes, else `text` itself."""
    if _BOOL.fullmatch(text):
        return text == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def read_yaml(text: str) -> Any:
    """The plain data in a YAML document.

    Raises RequestError, naming the line, if it is not YAML, or uses what `write_block` never writes and a reader could
    misjudge: a key given twice, keys other than strings, aliases, tags of Python objects.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise RequestError(f"not valid YAML: {line}{error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an explicit tag such as !!int on other text
        raise RequestError(f"not valid YAML: {' '.join(str(error).split())}") from error


def write_block(data: Any) -> str:
    """`data` as a YAML document, one line for each entry of a mapping; `read_yaml` gives equal data."""
    return yaml.dump(data, Dumper=_BlockDumper, sort_keys=False, allow_unicode=True, width=120)


def write_inline(data: Any) -> str:
    """`data` as YAML on one line; `read_yaml` gives equal data."""
    text = yaml.dump(
        data, Dumper=_InlineDumper, sort_keys=False, allow_unicode=True, width=sys.maxsize, default_flow_style=True
    )
    return text.removesuffix("...\n").rstrip("\n")  # PyYAML ends a document that is an unquoted scalar by "..."


def _whole(pattern: re.Pattern[str]) -> re.Pattern[str]:
    """`pattern` for PyYAML, which calls `match`."""
    return re.compile(rf"(?:{pattern.pattern})\Z")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's way: none of YAML 1.1's, those added below)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ComposerError(None, None, "aliases are not supported; write the value again", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                problem = f"a key must be a string (got {key!r}); quote it"
                raise ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                raise ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(_TAG + "null", _whole(_NULL), ["n", "~", ""])
_Loader.add_implicit_resolver(_TAG + "bool", _whole(_BOOL), list("tf"))
_Loader.add_implicit_resolver(_TAG + "int", _whole(_INT), list("-+0123456789"))
_Loader.add_implicit_resolver(_TAG + "float", _whole(_FLOAT), list("-+.0123456789"))
_Loader.add_constructor(_TAG + "int", lambda _, node: int(node.value))
_Loader.add_constructor(_TAG + "float", lambda _, node: float(node.value))


class _BlockDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


class _InlineDumper(_BlockDumper):
    pass


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None
    if any(char in text for char in "\x85\u2028\u2029"):
        style = '"'  # PyYAML writes these line breaks raw otherwise, and reads some of them as \n
    elif "\n" in text:
        style = '"' if isinstance(dumper, _InlineDumper) else "|"
    return dumper.represent_scalar(_TAG + "str", text, style)


def _represent_sequence(dumper: yaml.SafeDumper, items: list[Any] | tuple[Any, ...]) -> yaml.SequenceNode:
    flow = isinstance(dumper, _InlineDumper) or not holds_mapping(items)
    return dumper.represent_sequence(_TAG + "seq", items, flow_style=flow)


# Besides YAML 1.1's own: a string that YAML 1.2 takes for a number is quoted.
_BlockDumper.add_implicit_resolver(_TAG + "float", _whole(_FLOAT), list("-+.0123456789"))
_BlockDumper.add_representer(str, _represent_str)
_BlockDumper.add_representer(tuple, _represent_sequence)
_BlockDumper.add_representer(list, _represent_sequence)


def holds_mapping(data: Any) -> bool:
    """Whether the plain data are, or contain, a mapping."""
    return isinstance(data, Mapping) or (isinstance(data, list | tuple) and any(map(holds_mapping, data)))
