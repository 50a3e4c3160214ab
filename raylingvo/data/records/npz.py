"""NumPy's .npz: arrays of equal first dimension, whose rows are the fields of records."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raylingvo.data.records.base import ShardedRecords
from raylingvo.data.records.files import DataFile, first_line
from raylingvo.errors import RequestError


class NpzRecords(ShardedRecords):
    """The files' arrays, in memory. A record has a number, str or bytes where the array has one axis, else an array."""

    def __init__(self, files: Sequence[DataFile]):
        """Raises RequestError for a file that is no .npz, has pickled arrays, or arrays of different lengths."""
        self._arrays = [_read_npz(file) for file in files]
        super().__init__("npz", files, [len(next(iter(arrays.values()))) for arrays in self._arrays])

    def _read(self, shard: int, numbers: np.ndarray) -> list[dict[str, Any]]:
        arrays = self._arrays[shard]
        # A copy of the rows: who changes a record does not change the data. `tolist` gives Python's own scalars.
        columns = {
            name: array[numbers].tolist() if array.ndim == 1 else array[numbers] for name, array in arrays.items()
        }
        return [{name: column[i] for name, column in columns.items()} for i in range(len(numbers))]

    def _place(self, shard: int, number: int) -> str:
        return f"{self._files[shard].path}: record {number}"


def _read_npz(file: DataFile) -> dict[str, np.ndarray]:
    blob = file.open()
    content = io.BytesIO(blob.window(0, blob.size))
    if not zipfile.is_zipfile(content):
        raise RequestError(f"{file.path} is not a readable .npz")
    content.seek(0)
    try:
        # Pickled arrays are refused: loading them would run code of whoever made the file.
        with np.load(content, allow_pickle=False) as npz:
            arrays = {name: npz[name] for name in npz.files}
    # NumPy reads a header as Python: a damaged one raises what it happens to make (SyntaxError, TokenError, ...).
    except Exception as e:
        raise RequestError(f"{file.path} is not a readable .npz of plain arrays: {first_line(e)}") from e
    if not arrays:
        raise RequestError(f"{file.path} has no arrays")
    lengths = {name: len(array) if array.ndim else None for name, array in arrays.items()}
    if len(set(lengths.values())) > 1 or None in lengths.values():
        shapes = ", ".join(f"{name} {[*array.shape]}" for name, array in arrays.items())
        raise RequestError(f"{file.path}: arrays must have the same first dimension (got {shapes})")
    return arrays


def write(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Writes an .npz, of records that are all in memory; their number.

    Raises RequestError if a record has other fields, shapes or dtypes than the first one, or values that NumPy changes.
    """
    rows = list(records)
    if not rows:
        raise RequestError("an .npz needs at least one record, for the names, shapes and dtypes of its arrays")
    if not rows[0]:
        raise RequestError("cannot write record 0: it has no fields, and an .npz needs some")
    columns = {name: [np.asarray(row.get(name)) for row in rows] for name in rows[0]}
    for number, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            raise RequestError(f"cannot write record {number}: its fields {[*row]} are not {[*rows[0]]}, as before")
        for name, arrays in columns.items():
            array, first = arrays[number], arrays[0]
            if array.shape != first.shape or array.dtype.kind != first.dtype.kind or array.dtype.kind == "O":
                raise RequestError(
                    f"cannot write record {number}: {name!r} is {array.dtype}{[*array.shape]}; an .npz needs arrays of "
                    f"one plain dtype and shape, and record 0 has {first.dtype}{[*first.shape]}"
                )
            if array.dtype.kind in "SU" and not _is_kept(row[name], array):
                raise RequestError(
                    f"cannot write record {number}: {name!r} has text or bytes that end in a zero byte, or text and "
                    "numbers in one list, which an .npz cannot hold; parquet, arrow and tfrecord can hold zero bytes"
                )
    # Not `np.savez_compressed`: no field of it could be called `file`.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, arrays in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.stack(arrays), allow_pickle=False)
    return len(rows)


def _is_kept(value: Any, array: np.ndarray) -> bool:
    """Whether an array of text gives its values back: NumPy drops zero bytes at their ends, and makes numbers text."""
    if isinstance(value, np.ndarray | np.generic):
        return True
    return array.tolist() == (list(value) if isinstance(value, tuple) else value)
