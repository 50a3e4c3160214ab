"""Which items share a row: bin packing of sequences by length, in one column or several at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raylingvo.ops._best_fit_decreasing import best_fit_decreasing
from raylingvo.ops._row_filling import fill_rows, find_types

# n items, C columns (such as source and target), R rows.

# With several columns the search looks at every distinct tuple of lengths; this many take 20 us.
_MAX_TUPLES = 4096


def best_fit(lens: np.ndarray, max_lens: Sequence[int], *, window: int | None = None) -> tuple[np.ndarray, int]:
    """Packs items into few rows: the columns of an item lie in the same row, and no column of a row overflows.

    The result depends on nothing but the arguments: all arithmetic is in integers, and items of equal lengths are
    taken in input order. The order of the rows says something about the lengths (long items tend to come first):
    shuffle rows before training on them.

    One column: the better of two. Best fit decreasing (at most 11/9 of the fewest rows possible, plus 4; Johnson 1974),
    and, unless that is optimal, row by row: the longest item that fits, until one or two of those left fill the row
    exactly. 1,000,000 lengths take 0.2 to 0.5 s.

    Several columns: row by row the item that fits and has the largest dot product with the room left over, columns
    weighted by demand (Panigrahy et al. 2011, "Heuristics for vector bin packing"). That takes the long items first,
    and then those that fill whichever column lags. Where the totals of the columns differ, the rows of the smaller one
    cannot be full. 1,000,000 pairs of sentences take 0.5 s; items whose lengths hardly repeat take 20 us each.

    Args:
      lens: i64[n, C], each in [1, max_lens[c]]: drop empty and too long items first.
      max_lens: C integers >= 1, the slots of a row in each column.
      window: None, or pack each run of this many consecutive items on its own, so that no item of one run waits for
        another's; the rows of a run follow those of the one before. With several columns, None is one run if there are
        at most 4,096 distinct tuples of lengths, else runs of 4,096 items.

    Returns:
      row_of_item i64[n], and the number of rows R; each of the rows 0..R-1 has an item.

    Raises:
      ValueError: lens or max_lens is of another shape, not of integers, or out of range; window < 1.
    """
    lens, max_lens = _checked(lens, max_lens)
    if window is not None and window < 1:
        raise ValueError(f"window must be None or >= 1 (got {window})")
    if window is None:
        many_tuples = len(max_lens) > 1 and len(lens) > _MAX_TUPLES and len(find_types(lens)[1]) > _MAX_TUPLES
        window = _MAX_TUPLES if many_tuples else len(lens)
    row_of_item, num_rows = np.empty(len(lens), np.int64), 0
    for start in range(0, len(lens), window or 1):
        part = lens[start : start + window]
        rows, num_new = _pack_column(part[:, 0], max_lens[0]) if len(max_lens) == 1 else fill_rows(part, max_lens)
        row_of_item[start : start + window] = rows + num_rows
        num_rows += num_new
    return row_of_item, num_rows


def fill_ratio(lens: np.ndarray, max_lens: Sequence[int], num_rows: int) -> float:
    """The share of all slots of `num_rows` rows that the items fill, over all columns together; 1.0 for no rows.

    Arguments as in `best_fit`. Raises ValueError as it does, and if the items cannot fit into num_rows rows.
    """
    lens, max_lens = _checked(lens, max_lens)
    totals = lens.sum(axis=0).tolist()
    if any(total > num_rows * max_len for total, max_len in zip(totals, max_lens, strict=True)):
        raise ValueError(f"num_rows must be enough for {totals} slots of {max_lens} in a row (got {num_rows})")
    return sum(totals) / (num_rows * sum(max_lens)) if num_rows else 1.0


def _pack_column(len_n: np.ndarray, max_len: int) -> tuple[np.ndarray, int]:
    row_n, num_rows = best_fit_decreasing(len_n, max_len)
    if num_rows * max_len >= int(len_n.sum()) + max_len:  # a row more than the slots need
        other_n, num_others = fill_rows(len_n[:, None], [max_len])
        if num_others < num_rows:
            return other_n, num_others
    return row_n, num_rows


def _checked(lens: np.ndarray, max_lens: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    lens, max_C = np.asarray(lens), np.asarray(max_lens)
    if max_C.ndim != 1 or not len(max_C) or max_C.dtype.kind not in "iu" or (max_C < 1).any():
        raise ValueError(f"max_lens must be one or more integers >= 1 (got {max_lens})")
    if lens.ndim != 2 or lens.shape[1] != len(max_C) or lens.dtype.kind not in "iu":
        raise ValueError(f"lens must be integers of shape [n, {len(max_C)}] (got {lens.dtype} {list(lens.shape)})")
    lens = lens.astype(np.int64)
    if (wrong := np.argwhere((lens < 1) | (lens > max_C))).size:
        i, c = wrong[0].tolist()
        raise ValueError(
            f"lens[{i}, {c}] must be in [1, {max_C[c]}] (got {lens[i, c]}); drop empty and too long items first"
        )
    return lens, max_C.tolist()
