"""Bin packing row by row: each row takes, from all items that are left, what fills it best."""

from __future__ import annotations

import abc
from collections import Counter

import numpy as np

# n items, C columns, T types: the distinct tuples of lengths, in ascending order.


def fill_rows(lens: np.ndarray, max_lens: list[int]) -> tuple[np.ndarray, int]:
    """lens: i64[n, C], each in [1, max_lens[c]] -> row of each item, i64[n], and the number of rows.

    `bin_packing.best_fit` says which items a row takes. A row is repeated for as long as there are items of its types.
    """
    type_n, types_TxC = find_types(lens)
    count_T = np.bincount(type_n)
    if len(max_lens) == 1:
        picker: _Picker = _OneColumn(types_TxC[:, 0], count_T, max_lens[0])
    else:
        picker = _SeveralColumns(types_TxC, count_T, max_lens)
    type_of_pick: list[int] = []
    len_of_row: list[int] = []
    while len(type_of_pick) < len(lens):
        row = picker.next_row()
        times = 1 + picker.repeat(row)
        type_of_pick += row * times
        len_of_row += [len(row)] * times
    # The picks of a type are its items in input order.
    row_of_pick = np.repeat(np.arange(len(len_of_row)), len_of_row)
    row_n = np.empty(len(lens), np.int64)
    row_n[_stable_order(type_n)] = row_of_pick[_stable_order(np.array(type_of_pick))]
    return row_n, len(len_of_row)


def find_types(lens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """lens: i64[n, C] >= 0 -> the type of each item, i64[n], and the types, i64[T, C], in ascending order.

    np.unique(lens, axis=0) does the same, ten times slower.
    """
    type_n = np.zeros(len(lens), np.int64)
    for len_n in lens.T:
        type_n = np.unique(type_n * (len_n.max(initial=0) + 1) + len_n, return_inverse=True)[1]
    types_TxC = np.empty((type_n.max(initial=-1) + 1, lens.shape[1]), np.int64)
    types_TxC[type_n] = lens
    return type_n, types_TxC


def _stable_order(type_n: np.ndarray) -> np.ndarray:
    # NumPy sorts 16 bits by radix, ten times faster than 64.
    small = type_n.max(initial=0) < 2**16
    return np.argsort(type_n.astype(np.uint16) if small else type_n, kind="stable")


class _Picker(abc.ABC):
    """Takes items, row by row, from those that are left."""

    def __init__(self, count_T: np.ndarray):
        self._left: list[int] = count_T.tolist()

    @abc.abstractmethod
    def next_row(self) -> list[int]:
        """Takes the types of the next row's items: at least one, if any item is left."""

    @abc.abstractmethod
    def _remove(self, type_: int) -> None:
        """There are no more items of this type."""

    def _take(self, type_: int, times: int = 1) -> None:
        self._left[type_] -= times
        if not self._left[type_]:
            self._remove(type_)

    def repeat(self, row: list[int]) -> int:
        """Takes the items of the same row again, as often as they are left: how often."""
        count = Counter(row)
        times = min(self._left[type_] // k for type_, k in count.items())
        if times:
            for type_, k in count.items():
                self._take(type_, k * times)
        return times


class _OneColumn(_Picker):
    """The longest that fits, until one item, or two of like length, fill the row exactly.

    The lengths that are left are the bits of one integer, and in reverse those of another: the lengths whose complement
    to the room is there too are then a shift and an AND.
    """

    def __init__(self, len_T: np.ndarray, count_T: np.ndarray, max_len: int):
        super().__init__(count_T)
        self._len_T: list[int] = len_T.tolist()
        self._type_of = {length: type_ for type_, length in enumerate(self._len_T)}
        self._max_len = max_len
        self._lengths = sum(1 << length for length in self._len_T)
        self._reversed = sum(1 << (max_len - length) for length in self._len_T)

    def next_row(self) -> list[int]:
        row, room = [], self._max_len
        while lengths := self._lengths_for(room):
            for length in lengths:
                type_ = self._type_of[length]
                row.append(type_)
                self._take(type_)
                room -= length
        return row

    def _remove(self, type_: int) -> None:
        self._lengths ^= 1 << self._len_T[type_]
        self._reversed ^= 1 << (self._max_len - self._len_T[type_])

    def _lengths_for(self, room: int) -> list[int]:
        if self._lengths >> room & 1:
            return [room] if room else []
        # Bit l: both l and room - l are there. Of like length, because short items are precious: they fill gaps.
        pairs = (self._lengths & self._reversed >> (self._max_len - room)) >> (room + 1) // 2
        if pairs & 1 and room % 2 == 0 and self._left[self._type_of[room // 2]] < 2:
            pairs ^= 1
        if pairs:
            longer = (room + 1) // 2 + (pairs & -pairs).bit_length() - 1
            return [longer, room - longer]
        fitting = self._lengths & ((1 << room) - 1)
        return [fitting.bit_length() - 1] if fitting else []


class _SeveralColumns(_Picker):
    """The type that fits and has the largest dot product with the room that is left, columns weighted by demand."""

    def __init__(self, types_TxC: np.ndarray, count_T: np.ndarray, max_lens: list[int]):
        super().__init__(count_T)
        # The room in all columns is one integer, its digits, so that to place an item is to subtract.
        self._place_values = [1]
        for max_len in max_lens[:-1]:
            self._place_values.append(self._place_values[-1] * (max_len + 1))
        self._size_T = [self._number(lens) for lens in types_TxC.tolist()]
        self._empty = self._number(max_lens)
        # What is best in a room stays so while there are items of it, as others only disappear.
        self._best: dict[int, int | None] = {}
        # Columns in units of their rows, times the rows they need: sum_c w_c room_c len_c, w_c = total_c / max_c^3, as
        # integers below 2^62. A sum of floats might be rounded, and ties broken, differently on another machine.
        totals = (count_T @ types_TxC).tolist()
        rows_needed = sum(-(-total // max_len) for total, max_len in zip(totals, max_lens, strict=True))
        shift = 62 - rows_needed.bit_length()
        self._weights = [(total << shift) // m**3 for total, m in zip(totals, max_lens, strict=True)]
        # Longest first, so that ties go to them.
        self._types = np.arange(len(types_TxC))[::-1]
        self._lens_CxT = types_TxC.T[:, ::-1].copy()
        self._is_left = np.ones(len(types_TxC), bool)
        self._num_removed = 0

    def next_row(self) -> list[int]:
        row, room = [], self._empty
        while True:
            type_ = self._best.get(room, -1)
            if type_ is not None and (type_ < 0 or not self._left[type_]):
                type_ = self._best[room] = self._search(room)
            if type_ is None:
                return row
            row.append(type_)
            self._take(type_)
            room -= self._size_T[type_]

    def _remove(self, type_: int) -> None:
        self._is_left[type_] = False
        self._num_removed += 1

    def _search(self, room: int) -> int | None:
        if 4 * self._num_removed > len(self._types):
            kept = self._is_left[self._types]
            self._types, self._lens_CxT = self._types[kept], self._lens_CxT[:, kept]
            self._num_removed = 0
        fits, score = self._is_left[self._types], np.zeros(len(self._types), np.int64)
        for len_T, weight, slots in zip(self._lens_CxT, self._weights, self._digits(room), strict=True):
            fits &= len_T <= slots
            score += len_T * (weight * slots)
        score[~fits] = -1
        best = int(score.argmax()) if len(score) else -1
        return int(self._types[best]) if best >= 0 and fits[best] else None

    def _number(self, lens: list[int]) -> int:
        return sum(length * value for length, value in zip(lens, self._place_values, strict=True))

    def _digits(self, number: int) -> list[int]:
        digits = []
        for value in reversed(self._place_values):
            digit, number = divmod(number, value)
            digits.append(digit)
        return digits[::-1]
