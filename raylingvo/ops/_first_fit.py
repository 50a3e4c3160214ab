"""First fit of pairs: each to the lowest row where both of it fit, found by looking at 64 rows at a time."""

from __future__ import annotations

import numpy as np

_WORD = 64
_ALL = np.uint64(2**_WORD - 1)
_ALL_BUT = [_ALL ^ np.uint64(1 << bit) for bit in range(_WORD)]


def first_fit(src_n: np.ndarray, tgt_n: np.ndarray, max_src: int, max_tgt: int, num_apart: int) -> np.ndarray:
    """src_n, tgt_n: i64[n] in [1, max_src], [1, max_tgt] -> row of each pair, i64[n].

    The first `num_apart` pairs go to rows 0, 1, ... whatever would fit.
    """
    sides = _Side(max_src), _Side(max_tgt)
    rows = []
    for i, lens in enumerate(zip(src_n.tolist(), tgt_n.tolist(), strict=True)):
        row = i
        if i >= num_apart:
            words = sides[0].rows_with(lens[0]) & sides[1].rows_with(lens[1])
            word = int((words != 0).argmax())
            bits = int(words[word])
            row = _WORD * word + (bits & -bits).bit_length() - 1
        rows.append(row)
        for side, length in zip(sides, lens, strict=True):
            side.place(row, length)
    return np.array(rows, np.int64)


class _Side:
    """One column of the rows. There is always an empty row."""

    def __init__(self, max_len: int):
        self._max_len = max_len
        self._rooms: list[int] = []
        # Bit r % 64 of word [v, r // 64]: row r has v free slots or more. That is a bit for each slot of a row; the
        # packed row itself takes 96.
        self._words = np.full((max_len + 1, 1), _ALL)

    def rows_with(self, room: int) -> np.ndarray:
        """u64[words], the rows with this room or more."""
        return self._words[room]

    def place(self, row: int, length: int) -> None:
        if row == len(self._rooms):
            self._rooms.append(self._max_len)
            if len(self._rooms) == _WORD * self._words.shape[1]:
                self._words = np.concatenate([self._words, np.full_like(self._words, _ALL)], axis=1)
        room = self._rooms[row]
        word, bit = divmod(row, _WORD)
        self._words[room - length + 1 : room + 1, word] &= _ALL_BUT[bit]
        self._rooms[row] = room - length
