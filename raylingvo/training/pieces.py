"""Leaves of a tree in pieces, as the hosts of a Trainer hold them, put together again. NumPy only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Place(NamedTuple):
    """Where a piece lies."""

    leaf: int  # its number, in flatten order
    start: tuple[int, ...]  # of the piece within the leaf


class Assembled:
    """Arrays of all hosts as the leaves that they are pieces of.

    A part that is asked for and is one piece is that piece itself: nothing is copied.
    """

    def __init__(self, parts: Iterable[tuple[Sequence[np.ndarray], Sequence[Place] | None]]):
        """parts: (arrays, their places) of each host. Places None: each array is a whole leaf, in order."""
        self._pieces: dict[int, list[tuple[tuple[int, ...], np.ndarray]]] = {}
        for arrays, places in parts:
            if places is None:
                places = [Place(i, (0,) * array.ndim) for i, array in enumerate(arrays)]
            for (leaf, start), array in zip(places, arrays, strict=True):
                self._pieces.setdefault(leaf, []).append((tuple(start), array))

    def leaves(self) -> list[np.ndarray]:
        """All of them, whole. Raises ValueError if a piece is missing."""
        if sorted(self._pieces) != list(range(len(self._pieces))):
            raise ValueError(f"there are pieces of the leaves {sorted(self._pieces)} only")
        return [self.read(leaf) for leaf in range(len(self._pieces))]

    def read(self, leaf: int, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """Leaf number `leaf`, or the part at `index`. Raises ValueError if a piece is missing.

        index: a slice for each axis, with start and stop. Without, the leaf is taken to end where its last piece does.
        """
        pieces = self._pieces.get(leaf)
        if not pieces:
            raise ValueError(f"there is no piece of leaf {leaf}")
        shape = tuple(np.max([np.add(start, array.shape) for start, array in pieces], axis=0, initial=0).astype(int))
        bounds = [(0, n) for n in shape] if index is None else [(s.start, s.stop) for s in index]
        for start, array in pieces:
            if all((low, high) == (s, s + n) for (low, high), s, n in zip(bounds, start, array.shape, strict=True)):
                return array
        part = np.empty([high - low for low, high in bounds], pieces[0][1].dtype)
        filled = 0
        for start, array in pieces:
            # Where the piece and the part overlap, as bounds within the leaf.
            overlap = [
                (max(low, s), min(high, s + n)) for (low, high), s, n in zip(bounds, start, array.shape, strict=True)
            ]
            if all(low < high for low, high in overlap):
                target = tuple(slice(low - b, high - b) for (low, high), (b, _) in zip(overlap, bounds, strict=True))
                source = tuple(slice(low - s, high - s) for (low, high), s in zip(overlap, start, strict=True))
                part[target] = array[source]
                filled += part[target].size
        if filled != part.size:
            raise ValueError(f"of leaf {leaf} {part.size - filled} of {part.size} elements are missing")
        return part
