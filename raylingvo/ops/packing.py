"""Several sequences in one row of a batch, told apart by segment ids (Lingvo: core/ops/pack_ops.cc).

On the host, in NumPy: what is packed where decides how the next batch is read. Segment ids count from 1 within a row, 0
marks padding; positions count from 0 within a segment.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from raylingvo.ops._best_fit_decreasing import best_fit_decreasing
from raylingvo.ops._first_fit import first_fit

# n sequences, B rows of L slots. R rows of which pack_sequences keeps B.


class RowLayout(NamedTuple):
    """Where sequences of one column lie: i32[B, L] each, 0 in padding."""

    segment_ids: np.ndarray
    segment_pos: np.ndarray
    indices_in_input: np.ndarray


class PackedSequences(NamedTuple):
    """What `pack_sequences` returns: i32[B, packed_src_len] or i32[B, packed_tgt_len] each, 0 in padding.

    segment_ids: 1.. within a row. segment_pos: 0.. within a segment. indices_in_input: which input; only segment_ids
    tell its 0 from padding.
    """

    src_segment_ids: np.ndarray
    src_segment_pos: np.ndarray
    src_indices_in_input: np.ndarray
    tgt_segment_ids: np.ndarray
    tgt_segment_pos: np.ndarray
    tgt_indices_in_input: np.ndarray


class PackedSingleSequence(NamedTuple):
    """What `pack_single_sequence` returns: i32[B, max_packed_len] each; padding is 0 in segment_ids, -1 in indices."""

    segment_ids: np.ndarray
    indices_in_input: np.ndarray


def pack_sequences(
    src_lens: Any, tgt_lens: Any, packed_batch_size: int, packed_src_len: int, packed_tgt_len: int, seed: int
) -> PackedSequences:
    """Packs pairs of sequences first fit, as Lingvo's PackSequences does; `bin_packing.best_fit` wastes less.

    In input order, each pair goes to the lowest row where both of it fit; but the first packed_batch_size pairs go to
    a row each, so that no row stays empty while there are pairs. A pair that is empty or too long on either side is
    dropped. With packed_batch_size > 0, rows beyond it are dropped at random (by reservoir sampling, which puts kept
    rows anywhere).

    Args:
      src_lens, tgt_lens: integers [n], any values.
      packed_batch_size: B, or 0 for as many rows as are needed (one, of padding, if nothing is packed).
      packed_src_len, packed_tgt_len: >= 1, the slots of a row.
      seed: any integer, used modulo 2^32; 0 drops other rows at every call. Lingvo's op goes on drawing from one
        generator call after call; here each call begins anew, and so equals the first call of an op with this seed.

    Raises:
      ValueError: an argument is out of range or not of integers, or the shapes of src_lens and tgt_lens differ.
    """
    src_n, tgt_n = _lengths("src_lens", src_lens), _lengths("tgt_lens", tgt_lens)
    if src_n.shape != tgt_n.shape:
        raise ValueError(f"src_lens must be of the same shape as tgt_lens (got {src_n.shape} and {tgt_n.shape})")
    _check_at_least("packed_batch_size", packed_batch_size, 0)
    _check_at_least("packed_src_len", packed_src_len, 1)
    _check_at_least("packed_tgt_len", packed_tgt_len, 1)

    fits_n = (src_n >= 1) & (tgt_n >= 1) & (src_n <= packed_src_len) & (tgt_n <= packed_tgt_len)
    row_n = np.full(len(src_n), -1, np.int64)
    num_apart = min(packed_batch_size, len(src_n))
    row_n[fits_n] = first_fit(src_n[fits_n], tgt_n[fits_n], packed_src_len, packed_tgt_len, num_apart)
    num_rows = max(int(row_n.max(initial=0)) + 1, packed_batch_size)
    if packed_batch_size and num_rows > packed_batch_size:
        new_row_R = np.full(num_rows + 1, -1)  # the last: of what is not packed
        new_row_R[_sample_rows(packed_batch_size, num_rows, seed)] = np.arange(packed_batch_size)
        row_n, num_rows = new_row_R[row_n], packed_batch_size
    src = lay_out_rows(row_n, src_n, num_rows, packed_src_len)
    tgt = lay_out_rows(row_n, tgt_n, num_rows, packed_tgt_len)
    return PackedSequences(*src, *tgt)


def pack_single_sequence(lens: Any, max_packed_len: int, require_sequential_order: bool) -> PackedSingleSequence:
    """Packs all sequences, none dropped, as Lingvo's PackSingleSequence does.

    In sequential order, a row ends where the next sequence does not fit. Else best fit decreasing: longest first, each
    into the row with the least room that holds it (of equal ones the lowest), else into a new row; within a row,
    sequences are in input order all the same. An empty sequence takes a segment id, but no slot.

    Args:
      lens: integers [n], each in [0, max_packed_len].
      max_packed_len: >= 1, the slots of a row.

    Raises:
      ValueError: an argument is out of range or not of integers.
    """
    len_n = _lengths("lens", lens)
    _check_at_least("max_packed_len", max_packed_len, 1)
    if (wrong := np.flatnonzero((len_n < 0) | (len_n > max_packed_len))).size:
        i = wrong[0]
        raise ValueError(f"lens[{i}] must be in [0, max_packed_len] = [0, {max_packed_len}] (got {len_n[i]})")
    if require_sequential_order:
        row_n, num_rows = _next_fit(len_n, max_packed_len)
    else:
        row_n, num_rows = np.zeros(len(len_n), np.int64), 0
        row_n[len_n > 0], num_rows = best_fit_decreasing(len_n[len_n > 0], max_packed_len)
        if num_rows:
            # The empty ones come last, all to the fullest row.
            row_n[len_n == 0] = np.bincount(row_n, len_n, num_rows).argmax()
        else:
            num_rows = min(len(len_n), 1)
    layout = lay_out_rows(row_n, len_n, num_rows, max_packed_len)
    return PackedSingleSequence(
        layout.segment_ids, np.where(layout.segment_ids > 0, layout.indices_in_input, np.int32(-1))
    )


def lay_out_rows(row_of_item: Any, lens: Any, num_rows: int, packed_len: int) -> RowLayout:
    """Puts items side by side into the rows they were given, in input order: `best_fit`'s result as segments.

    row_of_item: integers [n] < num_rows; negative: the item is left out. lens: integers [n], those of one column. An
    item of length 0 takes a segment id, but no slot. Raises ValueError if a row has more than `packed_len` slots taken,
    or an argument is out of range.
    """
    row_n, len_n = _lengths("row_of_item", row_of_item), _lengths("lens", lens)
    if row_n.shape != len_n.shape:
        raise ValueError(f"row_of_item must be of the same shape as lens (got {row_n.shape} and {len_n.shape})")
    if row_n.max(initial=-1) >= num_rows:
        raise ValueError(f"row_of_item must be < num_rows = {num_rows} (got {row_n.max()})")
    # From here on items are ordered by row.
    item_n = np.argsort(row_n, kind="stable")
    item_n = item_n[np.searchsorted(row_n[item_n], 0) :]
    row_n, len_n = row_n[item_n], len_n[item_n]
    if (len_n < 0).any():
        raise ValueError(f"lens must be >= 0 (got {len_n.min()})")
    first_n = np.searchsorted(row_n, row_n)  # of the row
    end_n = np.cumsum(len_n)
    start_n = end_n - len_n
    start_in_row_n = start_n - start_n[first_n]
    if (over := np.flatnonzero(start_in_row_n + len_n > packed_len)).size:
        i = over[0]
        raise ValueError(f"row_of_item puts more than packed_len = {packed_len} slots into row {row_n[i]}")

    # Slots taken, one after the other: the item of each, and where it lies in that item.
    nth_item = np.repeat(np.arange(len(item_n)), len_n)
    pos = np.arange(len(nth_item)) - start_n[nth_item]
    slot = (row_n * packed_len + start_in_row_n)[nth_item] + pos

    def fill(values: np.ndarray) -> np.ndarray:
        filled = np.zeros(num_rows * packed_len, np.int32)
        filled[slot] = values
        return filled.reshape(num_rows, packed_len)

    segment_id_n = np.arange(len(item_n)) - first_n + 1
    return RowLayout(fill(segment_id_n[nth_item]), fill(pos), fill(item_n[nth_item]))


def apply_packing(values: Any, padding: Any, segment_ids: Any, indices: Any) -> np.ndarray:
    """Moves what was computed per input to where the inputs were packed, as Lingvo's ApplyPacking does.

    Matrices and higher, [n, M, ...] -> [B, L, ...] of the same dtype: each longest run of equal positive segment ids in
    a row, m slots from column s, takes values[indices[row, s], :m]; other slots take `padding`. So neighbours need
    different segment ids.

    Vectors, [n] -> [B]: the sum in each row of the values of its inputs: indices where the segment id is not 0, an
    index that follows itself counted once. Strings are joined by `padding` instead.

    Args:
      values: an array of any dtype, or of strings (str or bytes: of a NumPy string dtype, as objects, or a list).
      padding: a scalar; not used for vectors of numbers. It must be exact in an integer dtype.
      segment_ids, indices: integers [B, L].

    Raises:
      ValueError: a shape or dtype is wrong; an index is not that of a row of values, or a run is longer than M.
    """
    array = np.asarray(values)
    if array.dtype.kind in "US" and not isinstance(values, np.ndarray):
        array = np.asarray(values, object)  # lists of strings, whose results are as long as they come
    segment_ids, indices = np.asarray(segment_ids), np.asarray(indices)
    if segment_ids.ndim != 2 or segment_ids.shape != indices.shape:
        raise ValueError(
            f"segment_ids and indices must be matrices of the same shape (got {segment_ids.shape} and {indices.shape})"
        )
    for name, ids in (("segment_ids", segment_ids), ("indices", indices)):
        if ids.size and ids.dtype.kind not in "iu":
            raise ValueError(f"{name} must be integers (got {ids.dtype})")
    if array.ndim == 0:
        raise ValueError(f"values must have a dimension at least (got the scalar {values!r})")
    if np.ndim(padding):
        raise ValueError(f"padding must be a scalar (got shape {np.shape(padding)})")
    if array.ndim > 1:
        return _gather(array, padding, segment_ids, indices)
    return _reduce(array, padding, segment_ids, indices)


def _gather(values: np.ndarray, padding: Any, segment_ids: np.ndarray, indices: np.ndarray) -> np.ndarray:
    packed = np.full((*segment_ids.shape, *values.shape[2:]), *_common_dtype(values, padding))
    starts = np.ones(segment_ids.shape, bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    column = np.broadcast_to(np.arange(segment_ids.shape[1]), segment_ids.shape)
    start = np.maximum.accumulate(np.where(starts, column, 0), axis=1)
    # Slots taken: in which row and column, from which input and where in it.
    row, col = np.nonzero(segment_ids > 0)
    start = start[row, col]
    index, pos = indices[row, start], col - start
    _check_indices(index, len(values), row, start)
    if (over := np.flatnonzero(pos >= values.shape[1])).size:
        i = over[0]
        raise ValueError(
            f"segment_ids: the run at [{row[i]}, {start[i]}] is out of bounds for values of {values.shape[1]} columns "
            f"(got {pos[i] + 1} slots or more)"
        )
    packed[row, col] = values[index, pos]
    return packed


def _reduce(values: np.ndarray, padding: Any, segment_ids: np.ndarray, indices: np.ndarray) -> np.ndarray:
    row, col = np.nonzero(segment_ids)
    index = indices[row, col]
    _check_indices(index, len(values), row, col)
    counts = np.ones(len(row), bool)
    counts[1:] = (row[1:] != row[:-1]) | (index[1:] != index[:-1])
    row, index = row[counts], index[counts]
    if values.dtype.kind not in "OSTU":
        total = np.zeros(len(segment_ids), values.dtype)
        np.add.at(total, row, values[index])
        return total
    separator = padding.item() if isinstance(padding, np.ndarray) else padding
    if not isinstance(separator, (str, bytes)):
        raise ValueError(f"padding must be a string, as values are (got {padding!r})")
    strings: list[list[Any]] = [[] for _ in segment_ids]
    for r, string in zip(row.tolist(), values[index].tolist(), strict=True):
        if not isinstance(string, type(separator)):
            raise ValueError(f"values must be of the type of padding, {type(separator).__name__} (got {string!r})")
        strings[r].append(string)
    joined = [separator.join(parts) for parts in strings]
    # A dtype of fixed width grows with the strings.
    return np.array(joined, values.dtype.kind if values.dtype.kind in "SU" else values.dtype)


def _common_dtype(values: np.ndarray, padding: Any) -> tuple[np.ndarray, np.dtype]:
    """`padding`, and a dtype that holds it and `values`: that of values, or for strings a wider one."""
    fill = np.asarray(padding)
    if values.dtype.kind in "SU" and fill.dtype.kind == values.dtype.kind:
        return fill, np.promote_types(values.dtype, fill.dtype)
    with np.errstate(invalid="ignore"):
        cast = fill.astype(values.dtype)
    if values.dtype.kind in "biuSU" and (fill.dtype.kind in "SU" or cast != fill):
        raise ValueError(f"padding must be a value of {values.dtype}, the dtype of values (got {padding!r})")
    return cast, values.dtype


def _check_indices(index: np.ndarray, num_values: int, row: np.ndarray, col: np.ndarray) -> None:
    if (wrong := np.flatnonzero((index < 0) | (index >= num_values))).size:
        i = wrong[0]
        raise ValueError(f"indices[{row[i]}, {col[i]}] is out of bounds for {num_values} values (got {index[i]})")


def _next_fit(len_n: np.ndarray, max_len: int) -> tuple[np.ndarray, int]:
    """i64[n] rows, each ending where the next item does not fit, and their number."""
    total = list(accumulate(len_n.tolist(), initial=0))
    firsts = []
    first = 0
    while first < len(len_n):
        firsts.append(first)
        first = bisect_right(total, total[first] + max_len) - 1
    return np.searchsorted(firsts, np.arange(len(len_n)), side="right") - 1, len(firsts)


def _sample_rows(num_kept: int, num_rows: int, seed: int) -> list[int]:
    """Which row takes each of `num_kept` places: Lingvo's reservoir sampling, draw by draw.

    Row i >= num_kept replaces that of place j, uniform in [0, i], if there is such a place. Draws are those of
    std::mt19937 through libstdc++'s std::uniform_int_distribution.
    """
    # RandomState because NumPy promises to keep its stream, and it seeds the Mersenne Twister as C++ does.
    random = np.random.RandomState(seed % 2**32 if seed else None)

    def bits() -> Iterator[int]:
        while True:
            yield from random.randint(0, 2**32, 1024, np.uint32).tolist()

    draws = bits()
    kept = list(range(num_kept))
    for row in range(num_kept, num_rows):
        scale = (2**32 - 1) // (row + 1)
        place = next(draw for draw in draws if draw < (row + 1) * scale) // scale
        if place < num_kept:
            kept[place] = row
    return kept


def _lengths(name: str, values: Any) -> np.ndarray:
    """i64[n]"""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must be a vector (got shape {array.shape})")
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers (got {array.dtype})")
    return array.astype(np.int64)


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be >= {least} (got {value})")
