"""The notes that outputs carry, counted: what a user is told at the end of a long input."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass
class _Group:
    """Notes that begin alike: how many, the words that all begin with, and whether one has more."""

    number: int
    words: list[str]
    vary: bool = False

    def add(self, note: str) -> None:
        self.number += 1
        words = note.split()
        pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(self.words, words, strict=False))
        common = [word for word, _ in pairs]
        self.vary = self.vary or common != self.words or common != words
        self.words = common

    def __str__(self) -> str:
        return " ".join([str(self.number), *self.words, *(["..."] if self.vary else [])])


class Notes:
    """Counts outputs by the beginning of their field `note`, up to its first digit or quotation mark."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}

    def add(self, output: Mapping[str, Any]) -> None:
        """Counts an output's note, if it has one."""
        note = output.get("note")
        if not note:
            return
        beginning = re.split(r"[\d'\"]", note, maxsplit=1)[0]
        if beginning in self._groups:
            self._groups[beginning].add(note)
        else:
            self._groups[beginning] = _Group(1, note.split())

    def summary(self, num_lines: int) -> str:
        """Such as "3 of 200 lines have a note: 2 empty line, 1 cut to 100 of 140 tokens"; empty if none has."""
        groups = sorted(self._groups.values(), key=lambda group: -group.number)
        total = sum(group.number for group in groups)
        if not total:
            return ""
        return f"{total} of {num_lines} lines {'has' if total == 1 else 'have'} a note: {', '.join(map(str, groups))}"
