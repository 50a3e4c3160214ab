"""Lines of numbers that are ids already."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from raylingvo.data.tokenizers.base import Text, TokenizerWithGivenIds, to_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegerTokenizer(TokenizerWithGivenIds):
    """A text is ids in decimal, with spaces between them; what is no id below `size` is unknown.

    The special ids are those of Lingvo's giant models, which decode such lines: 0 starts a sentence, 1 ends it.
    """

    size: int
    target_unk_id: int = 0
    target_sos_id: int = 0
    target_eos_id: int = 1

    def __post_init__(self) -> None:
        for name in ("target_unk_id", "target_sos_id", "target_eos_id"):
            if not 0 <= getattr(self, name) < self.size:
                raise ValueError(f"{name} must be in [0, size = {self.size}) (got {getattr(self, name)})")

    @property
    def vocab_size(self) -> int:
        return self.size

    def _tokens(self, strings: Sequence[Text], seed_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = [[self._id(word) for word in to_bytes(string).split()] for string in strings]
        flat = np.array([i for row in rows for i in row], np.int32)
        return flat, np.fromiter(map(len, rows), np.int64, len(rows))

    def _id(self, word: bytes) -> int:
        # No id below 2^31 has more digits; Python refuses to read thousands of them.
        known = word.isdigit() and len(word) <= 10 and int(word) < self.size
        return int(word) if known else self.unk_id

    def _decode(self, rows: list[list[int]]) -> list[str]:
        return [" ".join(str(i if 0 <= i < self.size else self.unk_id) for i in row) for row in rows]
