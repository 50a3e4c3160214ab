"""The task of the punctuator: a translation from text without capitals and punctuation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from raylingvo.data.punctuation import unpunctuated
from raylingvo.models.mt.translation import Translation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Punctuator(Translation):
    """A `Translation` whose sources are `unpunctuated`: lines of text may have any capitals and punctuation."""

    def encode_lines(self, lines: Sequence[str]) -> dict[str, np.ndarray]:
        """As `Translation`. What is to be restored need not be taken away before."""
        if not self.decoding.forced_prefix:
            return super().encode_lines([unpunctuated(line) for line in lines])
        parts = [line.partition("\t") for line in lines]
        return super().encode_lines([f"{unpunctuated(line)}\t{start}" for line, _, start in parts])
