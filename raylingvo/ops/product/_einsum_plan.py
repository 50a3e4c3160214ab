"""A sum of products of two arrays, read as a batch of matrix products over strided memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Equation(NamedTuple):
    """An axis of `x`, of `y` and of the result for each letter, as in "bd", "df", "bf"."""

    x: str
    y: str
    result: str


class Axis(NamedTuple):
    """Its size and, in each array, the elements from one index to the next; 0 where an array has no such axis."""

    size: int
    x: int
    y: int
    result: int


class Plan(NamedTuple):
    """For each element of the batch, result[m, n] = sum over k of left[m, k] * right[k, n].

    swap: left is y and right is x, and so in each `Axis`. n: its neighbours are neighbours in the result.
    """

    swap: bool
    m: Axis
    n: Axis
    k: Axis
    batch: tuple[Axis, ...]

    @property
    def multiplications(self) -> int:
        return math.prod(axis.size for axis in (self.m, self.n, self.k, *self.batch))


_ONE = Axis(1, 0, 0, 0)


def make_plan(equation: Equation, x_shape: Sequence[int], y_shape: Sequence[int]) -> Plan | None:
    """The plan for row-major arrays; None if there is none: an axis is summed within one array, the result's last axis
    is of both arrays, or summed axes are in different orders, or the result is one number."""
    sizes = sizes_of(equation, x_shape, y_shape)
    letters = [letter for letter in sizes if sizes[letter] != 1]
    if any((letter in equation.x) + (letter in equation.y) + (letter in equation.result) < 2 for letter in letters):
        return None
    last = next((letter for letter in reversed(equation.result) if sizes[letter] != 1), None)
    if last is None or (last in equation.x and last in equation.y):
        return None
    swap = last in equation.x
    if swap:
        equation = Equation(equation.y, equation.x, equation.result)
    strides = [_strides(part, sizes) for part in equation]
    axes = {letter: Axis(sizes[letter], *(of.get(letter, 0) for of in strides)) for letter in letters}

    def merged(order: str, *, x: bool, y: bool) -> list[Axis]:
        of = [letter for letter in order if (letter in equation.x, letter in equation.y) == (x, y)]
        return _merged(axes[letter] for letter in of if letter in axes)

    ms, ns = merged(equation.result, x=True, y=False), merged(equation.result, x=False, y=True)
    batch = merged(equation.result, x=True, y=True)
    ks = merged("".join(letter for letter in equation.x if letter not in equation.result), x=True, y=True)
    if len(ks) > 1:
        return None
    # One axis each; others are more of the batch.
    n = next(axis for axis in ns if axis.result == 1)
    m = max(ms, key=lambda axis: axis.size, default=_ONE)
    batch += [axis for axis in (*ms, *ns) if axis not in (m, n)]
    return Plan(swap, m, n, ks[0] if ks else _ONE, tuple(batch))


def sizes_of(equation: Equation, x_shape: Sequence[int], y_shape: Sequence[int]) -> dict[str, int]:
    """The size of each axis. Raises ValueError if shapes do not fit the equation."""
    sizes: dict[str, int] = {}
    for name, letters, shape in (("x", equation.x, x_shape), ("y", equation.y, y_shape)):
        if len(letters) != len(shape):
            raise ValueError(f"{name} must have the axes {letters!r} (got shape {list(shape)})")
        for letter, size in zip(letters, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(f"axis {letter!r} must be of one size in x and y (got {sizes[letter]} and {size})")
    return sizes


def _strides(letters: str, sizes: dict[str, int]) -> dict[str, int]:
    return {letter: math.prod(sizes[inner] for inner in letters[i + 1 :]) for i, letter in enumerate(letters)}


def _merged(axes: Iterable[Axis]) -> list[Axis]:
    """Axes that follow each other in all arrays become one."""
    merged: list[Axis] = []
    for axis in axes:
        before = merged[-1] if merged else None
        if before and all(outer == axis.size * inner for outer, inner in zip(before[1:], axis[1:], strict=True)):
            merged[-1] = axis._replace(size=before.size * axis.size)
        else:
            merged.append(axis)
    return merged
