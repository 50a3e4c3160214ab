"""Best fit decreasing, exactly, but for all items of one length at once."""

from __future__ import annotations

import numpy as np


def best_fit_decreasing(len_n: np.ndarray, max_len: int) -> tuple[np.ndarray, int]:
    """len_n: i64[n] in [1, max_len] -> row of each item, i64[n], and the number of rows.

    Items longest first (equal ones in input order), each into the row with the least room that holds it (of equal ones
    the lowest row), else into a new row. A row that takes an item then has the least room of all that hold its length,
    so it goes on taking items of this length until no more fit: whole stretches of rows and items are placed at once.
    """
    row_n, num_rows = np.empty(len(len_n), np.int64), 0
    rooms = _RowsByRoom()
    item_n = np.argsort(-len_n, kind="stable")
    lengths, counts = np.unique(len_n, return_counts=True)
    start = 0
    for length, count in zip(lengths[::-1].tolist(), counts[::-1].tolist(), strict=True):
        items = item_n[start : start + count]
        start += count
        while len(items):
            room = rooms.least(length)
            if room is None:
                room = max_len
                rows = np.arange(num_rows, num_rows - (-len(items) // (max_len // length)))
                num_rows += len(rows)
            else:
                rows = rooms.pop(room)
            per_row = room // length
            num_full = min(len(rows), len(items) // per_row)
            row_n[items[: num_full * per_row]] = np.repeat(rows[:num_full], per_row)
            rooms.add(room - per_row * length, rows[:num_full])
            items, rows = items[num_full * per_row :], rows[num_full:]
            if len(items) and len(rows):  # fewer items than a row holds
                row_n[items] = rows[0]
                rooms.add(room - len(items) * length, rows[:1])
                items, rows = items[:0], rows[1:]
            rooms.add(room, rows)
    return row_n, num_rows


class _RowsByRoom:
    """Rows by the number of their free slots."""

    def __init__(self) -> None:
        self._rows: dict[int, list[np.ndarray]] = {}
        self._rooms = 0  # bit r: some row has r free slots

    def add(self, room: int, rows: np.ndarray) -> None:
        if len(rows):
            self._rows.setdefault(room, []).append(rows)
            self._rooms |= 1 << room

    def least(self, length: int) -> int | None:
        """The least room >= length that some row has."""
        rooms = self._rooms >> length
        return length + (rooms & -rooms).bit_length() - 1 if rooms else None

    def pop(self, room: int) -> np.ndarray:
        """Takes out the rows with this room, lowest first."""
        self._rooms &= ~(1 << room)
        parts = self._rows.pop(room)
        return np.sort(np.concatenate(parts)) if len(parts) > 1 else parts[0]
