"""The search spaces of a sweep: which values of one field of an experiment are tried.

As text, `loguniform(1e-4, 1e-1)` or `choice(adam, sgd)`. `parse` reads it, knowing no experiment: what is in a choice
or a grid remains text. `typed` checks it against the field, and gives its values the field's type.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import difflib
import itertools
import math
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import yaml

from raylingvo import config
from raylingvo._config import text as config_text
from raylingvo._config.messages import echo
from raylingvo.errors import RequestError

Value = bool | int | float | str | None

_MOST_VALUES = 2**63 - 1  # among which numpy can draw
_MOST_COMBINATIONS = 100_000  # far more trials than anybody runs, and their list fits in memory


class Space(abc.ABC):
    """The values to try. `str` gives the text that `parse` reads as an equal space."""

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator) -> Value:
        """One of the values, a plain Python one."""

    @property
    def size(self) -> int | None:
        """How many values there are; None if they cannot be listed."""
        return None

    def values(self) -> tuple[Value, ...]:
        """All values, in order. Raises ValueError if `size` is None."""
        raise ValueError(f"{self} has no list of values")

    def __str__(self) -> str:
        # Without .0: numbers that are equal are written alike, whether int or float.
        return _call(self, [repr(number).removesuffix(".0") for number in vars(self).values()])


@dataclasses.dataclass(frozen=True)
class Uniform(Space):
    """Floats from low to high, all equally likely. Raises ValueError if not low < high, both finite."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _make_floats(self)
        _check_order(self)

    def draw(self, rng: np.random.Generator) -> float:
        return _between(self.low, self.high, rng.random())


@dataclasses.dataclass(frozen=True)
class LogUniform(Space):
    """Floats from low to high, whose logarithms are equally likely. ValueError if not 0 < low < high, both finite."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _make_floats(self)
        _check_positive(self, "low")
        _check_order(self)

    def draw(self, rng: np.random.Generator) -> float:
        value = math.exp(_between(math.log(self.low), math.log(self.high), rng.random()))
        return min(max(value, self.low), self.high)  # exp(log(low)) may be a little less than low


@dataclasses.dataclass(frozen=True)
class QUniform(Space):
    """The multiples of q from low to high, the ends included if they are such; all equally likely.

    Ints if low, high and q are ints, else the floats nearest to the decimal multiples (0.3, not 3 * 0.1). Differs from
    Ray Tune, which rounds a uniform float: its values may lie beyond the ends, which are half as likely as the others.
    Raises ValueError if not low < high and q > 0, all finite, or if there is no multiple.
    """

    low: float
    high: float
    q: float

    def __post_init__(self) -> None:
        if not all(_is_int(number) for number in vars(self).values()):
            _make_floats(self)
        _check_order(self)
        _check_positive(self, "q")
        if not self.size > 0:
            raise ValueError(f"no multiple of q is in low to high (got {_numbers(self)})")
        if self.size > _MOST_VALUES:
            raise ValueError(f"q must be larger: it has more than 2^63 multiples in low to high (got {_numbers(self)})")

    def draw(self, rng: np.random.Generator) -> int | float:
        return self._multiple(int(rng.integers(self.size)))

    @property
    def size(self) -> int:
        return math.floor(_exact(self.high) / _exact(self.q)) - self._least + 1

    def values(self) -> tuple[int | float, ...]:
        return tuple(map(self._multiple, range(self.size)))

    @property
    def ends(self) -> tuple[int | float, int | float]:
        """The least and the greatest value."""
        return self._multiple(0), self._multiple(self.size - 1)

    @property
    def _least(self) -> int:
        return math.ceil(_exact(self.low) / _exact(self.q))

    def nearest(self, value: float) -> int | float:
        """The value of the space next to `value`."""
        return self._multiple(min(max(round(value / self.q) - self._least, 0), self.size - 1))

    def _multiple(self, index: int) -> int | float:
        multiple = (self._least + index) * _exact(self.q)
        return int(multiple) if isinstance(self.q, int) else float(multiple)


@dataclasses.dataclass(frozen=True)
class RandInt(Space):
    """The ints from low up to, but without, high, as in Ray Tune; all equally likely. ValueError if not low < high."""

    low: int
    high: int

    def __post_init__(self) -> None:
        for name, number in vars(self).items():
            if not _is_int(number):
                raise ValueError(f"{name} must be an int (got {number!r})")
        _check_order(self)
        if self.size > _MOST_VALUES:
            raise ValueError(f"high - low must be < 2^63 (got {_numbers(self)})")

    def draw(self, rng: np.random.Generator) -> int:
        return self.low + int(rng.integers(self.size))

    @property
    def size(self) -> int:
        return self.high - self.low

    def values(self) -> tuple[int, ...]:
        return tuple(range(self.low, self.high))


@dataclasses.dataclass(frozen=True)
class Normal(Space):
    """Floats of a normal distribution, without bounds. Raises ValueError if not std > 0, both finite."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        _make_floats(self)
        _check_positive(self, "std")

    def draw(self, rng: np.random.Generator) -> float:
        return float(rng.normal(self.mean, self.std))


@dataclasses.dataclass(frozen=True)
class _Listed(Space):
    """items: of the field's type if they come from `typed`, else texts as `config.override` takes them.

    Raises ValueError if there are none, or one is given twice.
    """

    items: tuple[Value, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(self.items))
        if not self.items:
            raise ValueError("there must be at least one item")
        seen = set()
        for item in self.items:
            if (type(item), item) in seen:  # the types are compared because 1 == True
                raise ValueError(f"{_write_item(item)} is given twice")
            seen.add((type(item), item))

    @property
    def size(self) -> int:
        return len(self.items)

    def values(self) -> tuple[Value, ...]:
        return self.items

    def __str__(self) -> str:
        return _call(self, map(_write_item, self.items))


@dataclasses.dataclass(frozen=True)
class Choice(_Listed):
    """Some values, all equally likely."""

    def draw(self, rng: np.random.Generator) -> Value:
        return self.items[int(rng.integers(self.size))]


@dataclasses.dataclass(frozen=True)
class Grid(_Listed):
    """Some values, each of which is tried with all else (`combinations`). To draw one is an error, a TypeError."""

    def draw(self, rng: np.random.Generator) -> Value:
        raise TypeError(f"the values of a grid are enumerated, not drawn (got {self})")


_SPACES: Mapping[str, type[Any]] = {
    cls.__name__.lower(): cls for cls in (Uniform, LogUniform, QUniform, RandInt, Normal, Choice, Grid)
}
_TEXT = re.compile(r"\s*(?:(?P<name>\w+)\s*\((?P<arguments>.*)\)|\[(?P<items>.*)\])\s*", re.DOTALL)
_QUOTED = re.compile(r""" "(?:\\.|[^"\\])*" | '(?:''|[^'])*' """, re.DOTALL | re.VERBOSE)  # as in YAML


def parse(key: str, text: object) -> Space:
    """The space that `text` describes; `key` is for messages only.

    text: NAME(ARGUMENT, ...), or a list, in text or (from YAML) a Python one: a choice of its items. The items of a
    choice or grid are texts for `config.override`, YAML if need be: `choice([1, 2], {class: my.Adam}, none)`. Commas in
    brackets, braces and quotes do not separate them; an item in quotes is the text that they enclose.

    Raises RequestError, naming the key and the text, if it is no space, or its arguments are wrong.
    """
    if isinstance(text, list | tuple):
        return _make(key, text, Choice, [_write_plain(item) for item in text])
    match = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise RequestError(
            f"--param {key}: expected a space, such as loguniform(1e-4, 1e-1), choice(adam, sgd) or grid(1, 2) "
            f"(got {echo(text)}; spaces: {', '.join(_SPACES)})"
        )
    name, arguments = match["name"] or "choice", match["arguments"] if match["name"] else match["items"]
    if name not in _SPACES:
        close = difflib.get_close_matches(name.lower(), _SPACES, n=3, cutoff=0.6)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise RequestError(f"--param {key}: no space {name!r}{hint} (spaces: {', '.join(_SPACES)})")
    cls = _SPACES[name]
    try:
        parts = _split(arguments)
        if issubclass(cls, _Listed):
            return cls(tuple(map(_read_item, parts)))
    except (ValueError, RequestError) as error:
        raise _wrong(key, text, error) from error
    names = [field.name for field in dataclasses.fields(cls)]
    if len(parts) != len(names):
        raise RequestError(f"--param {key}: expected {name}({', '.join(names)}) (got {echo(text)})")
    return _make(key, text, lambda given: cls(*given), map(config_text.read_scalar, parts))


def typed(experiment: object, key: str, space: Space) -> Space:
    """The space with values of the type of the experiment's field `key`, checked to be values that it can have.

    Checked are all items, or the least and the greatest value, or the mean of a normal space, each in the experiment as
    it is. An item becomes the bool, int, float or None that the field reads it as; for a str, an enum, a list, a
    mapping or a dataclass it remains text. The values of a quniform space of whole numbers become ints for an int
    field, floats for a float field. Those of a randint space remain ints: a float field takes them, too.

    Raises RequestError, naming --param KEY, for what `config.override` refuses, and for items that are the same value.
    """
    if isinstance(space, _Listed):
        items = [_typed_item(item, _put(experiment, key, item)) for item in space.items]
        return _make(key, str(space), type(space), items)
    if isinstance(space, QUniform) and all(float(number).is_integer() for number in vars(space).values()):
        space = QUniform(*map(int, vars(space).values()))
    ends = _ends(space)
    try:
        found = [value for end in ends for value in _put(experiment, key, end)]
    except RequestError as error:
        if isinstance(ends[0], int) or not _takes_ints(experiment, key, ends):
            raise
        fix = "give whole low, high and q" if isinstance(space, QUniform) else "use randint or quniform"
        raise RequestError(f"{error}; {space} gives floats: {fix}") from error
    if isinstance(space, QUniform) and {type(value) for value in found} == {float}:
        return QUniform(*map(float, vars(space).values()))
    return space


def draws(spaces: Mapping[str, Space], sample: int, seed: int) -> dict[str, Value]:
    """By key, the values of sample number `sample`, of all spaces that are not grids. Both numbers are >= 0.

    A value depends on its own key and space, `sample` and `seed` alone: not on other keys, or the number of samples.
    """
    return {
        key: space.draw(np.random.default_rng([seed, sample, zlib.crc32(key.encode())]))
        for key, space in spaces.items()
        if not isinstance(space, Grid)
    }


def combinations(spaces: Mapping[str, Space]) -> list[dict[str, Value]]:
    """All combinations of the values of the grids, by key; a single empty one if there are no grids.

    In the order of the keys, the last changing fastest. Raises RequestError if there are more than 100,000.
    """
    return _product({key: space for key, space in spaces.items() if isinstance(space, Grid)})


def all_values(spaces: Mapping[str, Space]) -> list[dict[str, Value]]:
    """All combinations of the values of all spaces, for a grid search; ordered as in `combinations`.

    Raises RequestError, naming the key, if a space has no list of values, or if there are more than 100,000.
    """
    for key, space in spaces.items():
        if space.size is None:
            raise RequestError(
                f"--search grid: {space} of {key} has no list of values; use grid(...), choice, randint or quniform"
            )
    return _product(spaces)


def examples(space: Space) -> tuple[Value, ...]:
    """The values of a choice or a grid; of another space its least and greatest, of a normal distribution its mean."""
    return space.values() if isinstance(space, _Listed) else _ends(space)


def _product(spaces: Mapping[str, Space]) -> list[dict[str, Value]]:
    sizes = {key: space.size or 0 for key, space in spaces.items()}
    if math.prod(sizes.values()) > _MOST_COMBINATIONS:
        counts = ", ".join(f"{size} of {key}" for key, size in sizes.items())
        raise RequestError(f"--param: at most {_MOST_COMBINATIONS} combinations of values can be tried (got {counts})")
    combined = itertools.product(*(space.values() for space in spaces.values()))
    return [dict(zip(spaces, values, strict=True)) for values in combined]


def _make(key: str, text: object, make: Callable[[tuple[Any, ...]], Space], arguments: Iterable[Any]) -> Space:
    try:
        return make(tuple(arguments))
    except ValueError as error:
        raise _wrong(key, text, error) from error


def _wrong(key: str, text: object, error: Exception) -> RequestError:
    return RequestError(f"--param {key}: {echo(text)}: {error}")


def _put(experiment: object, key: str, value: Value) -> list[Any]:
    """The scalars at `key` in the experiment when it is given `value` there."""
    try:
        return _scalars(config.override(experiment, {key: value}), key)
    except RequestError as error:
        named = str(error).startswith((f"{key}:", f"{key} "))
        raise RequestError(f"--param {error}" if named else f"--param {key}: {error}") from error


def _scalars(experiment: object, key: str) -> list[Any]:
    """The values at `key`, several if it has a `*`; none where there are parts below it, or in a list of scalars."""
    pattern = re.compile(re.escape(key).replace(r"\*", r"[^.]+"))
    return [value for name, value in config.flatten(experiment).items() if pattern.fullmatch(name)]


def _typed_item(item: Value, found: Sequence[Any]) -> Value:
    """`item` as the field holds it, `found`; itself where that is text or has parts, which `override` takes as text."""
    types = {type(value) for value in found}
    return found[0] if len(types) == 1 and types <= {bool, int, float, type(None)} else item


def _ends(space: Any) -> tuple[int | float, ...]:
    if isinstance(space, QUniform):
        return space.ends
    if isinstance(space, Normal):
        return (space.mean,)
    return (space.low, space.high - 1) if isinstance(space, RandInt) else (space.low, space.high)


def _takes_ints(experiment: object, key: str, ends: Iterable[float]) -> bool:
    """Whether the field, which refuses floats, has an int, or can have one next to these."""
    found = _scalars(experiment, key)
    for number in [rounded(end) for end in ends for rounded in (math.floor, math.ceil)]:
        with contextlib.suppress(RequestError):
            found += _put(experiment, key, number)
    return any(type(value) is int for value in found)


def _split(text: str) -> list[str]:
    """The parts between the commas that are not in brackets, braces or quotes. ValueError if these are not closed."""
    parts, start, position, before, closing = [], 0, 0, ",", []
    while position < len(text):
        char, end = text[position], position + 1
        if char in "'\"" and before in ",[{:":  # elsewhere it is an apostrophe
            quoted = _QUOTED.match(text, position)
            if quoted is None:
                raise ValueError(f"a {char} is not closed")
            end = quoted.end()
        elif char in "[{":
            closing.append("]" if char == "[" else "}")
        elif char in "]}" and (not closing or closing.pop() != char):
            raise ValueError(f"a {char} closes nothing")
        elif char == "," and not closing:
            parts.append(text[start:position].strip())
            start = end
        before = before if char.isspace() else char
        position = end
    if closing:
        raise ValueError(f"a {closing[-1]} is missing")
    parts.append(text[start:].strip())
    if parts == [""]:
        return []
    if "" in parts:
        raise ValueError("there is nothing between two commas, or after the last; an empty text is ''")
    return parts


def _read_item(part: str) -> str:
    if part[0] not in "'\"":
        return part
    if not _QUOTED.fullmatch(part):
        raise ValueError(f"{part} is more than one text in quotes")
    return config_text.read_yaml(part)


def _write_item(item: Value) -> str:
    """What `_read_item` reads as `item`, or as the text for it."""
    text = _write_plain(item)
    with contextlib.suppress(ValueError):
        if _split(text) == [text] and text[0] not in "'\"" and text.isprintable():
            return text
    return yaml.safe_dump(text, default_style='"', width=sys.maxsize, allow_unicode=True).rstrip("\n")


def _write_plain(value: object) -> str:
    """`value`, of a YAML file or of a field, as text for `config.override`."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(value)
    return "none" if value is None else config_text.write_inline(value)


def _call(space: Space, arguments: Iterable[str]) -> str:
    return f"{type(space).__name__.lower()}({', '.join(arguments)})"


def _numbers(space: Space) -> str:
    return ", ".join(f"{name} {number!r}" for name, number in vars(space).items())


def _make_floats(space: Space) -> None:
    for name, number in vars(space).items():
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not (is_number and abs(number) <= sys.float_info.max):
            raise ValueError(f"{name} must be a finite number (got {echo(number)})")
        object.__setattr__(space, name, float(number))


def _check_order(space: Any) -> None:
    if not space.low < space.high:
        raise ValueError(f"low must be < high (got {space.low!r}, {space.high!r})")


def _check_positive(space: Space, name: str) -> None:
    if not getattr(space, name) > 0:
        raise ValueError(f"{name} must be > 0 (got {getattr(space, name)!r})")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _between(low: float, high: float, share: float) -> float:
    """Both weighted, because high - low may be more than a float can hold; rounding must not leave the bounds."""
    return min(max(low * (1 - share) + high * share, low), high)


def _exact(number: float) -> Fraction:
    """The decimal number that the float is written as."""
    return Fraction(repr(number))
