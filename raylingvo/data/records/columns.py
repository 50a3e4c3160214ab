"""Rows of Arrow tables as dicts of plain values, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raylingvo.errors import RequestError

if TYPE_CHECKING:
    import pyarrow as pa


def rows(table: pa.Table) -> list[dict[str, Any]]:
    """A dict for each row: Python's scalars, str, bytes, None for a null; arrays for lists of numbers; else lists."""
    columns = {name: _values(column.combine_chunks()) for name, column in zip(table.column_names, table, strict=True)}
    return [{name: values[i] for name, values in columns.items()} for i in range(table.num_rows)]


def _values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    import pyarrow as pa

    # combine_chunks gives a ChunkedArray where one array cannot hold the column.
    if isinstance(column, pa.ChunkedArray) or not _is_list(column.type):
        return column.to_pylist()
    depth, leaf = 0, column.type
    while _is_list(leaf):
        depth, leaf = depth + 1, leaf.value_type
    if not (pa.types.is_integer(leaf) or pa.types.is_floating(leaf) or pa.types.is_boolean(leaf)):
        return column.to_pylist()
    dtype = np.dtype(leaf.to_pandas_dtype())
    if depth > 1 or column.null_count or column.flatten().null_count:
        return [_array(values, dtype) for values in column.to_pylist()]
    # The common case without a Python object for each number. A copy, because Arrow's memory is read-only.
    value_M = np.array(column.flatten().to_numpy(zero_copy_only=False), dtype)
    return np.split(value_M, np.cumsum(column.value_lengths().to_numpy())[:-1])


def _is_list(type: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type)


def _array(values: list[Any] | None, dtype: np.dtype) -> np.ndarray | list[Any] | None:
    if values is None:
        return None
    try:
        return np.array(values, dtype)
    except (ValueError, TypeError):  # lists of different lengths, or nulls among the numbers
        return values


def table(records: Sequence[dict[str, Any]], first: int, schema: pa.Schema | None) -> pa.Table:
    """The records as rows; their types are those of `schema`, or those of the values.

    first: the number of the first record, for messages. Raises RequestError for values of mixed or unknown types, for
    fractions where the type has integers, for fields that the schema lacks; fields that a record lacks become nulls.
    """
    import pyarrow as pa

    if not all(records):
        raise RequestError(f"record {first + [bool(r) for r in records].index(False)} has no fields; rows need some")
    names = list(dict.fromkeys(name for record in records for name in record)) if schema is None else schema.names
    for number, record in enumerate(records, first):
        if new := record.keys() - set(names):
            raise RequestError(f"record {number} has the field {min(new)!r}; the first records have {', '.join(names)}")
    columns = {}
    for name in names:
        values = [record.get(name) for record in records]
        type_ = _type(values) if schema is None else schema.field(name).type
        if type_ is not None:
            _check_integers(name, values, first, type_)
        try:
            columns[name] = pa.array([_plain(value) for value in values], type_)
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as e:
            reason = str(e).partition("\n")[0]
            raise RequestError(f"records {first} to {first + len(records) - 1}, field {name!r}: {reason}") from e
    return pa.table(columns, schema=schema)


def _type(values: Sequence[Any]) -> pa.DataType | None:
    """Lists of the dtype that holds all arrays, nested as deep as the first; None where pyarrow finds the type."""
    import pyarrow as pa

    arrays = [value for value in values if isinstance(value, np.ndarray) and value.dtype.kind in "biuf"]
    if not arrays:
        return None
    type_ = pa.from_numpy_dtype(np.result_type(*{array.dtype for array in arrays}))
    for _ in range(arrays[0].ndim):
        type_ = pa.list_(type_)
    return type_


def _check_integers(name: str, values: Sequence[Any], first: int, type: pa.DataType) -> None:
    """Raises RequestError for the first value with a fraction where `type` has integers: pyarrow would cut it off."""
    if not _has_integers(type):
        return
    for number, value in enumerate(values, first):
        if _loses_fraction(value, type):
            raise RequestError(
                f"record {number}, field {name!r} has a fraction, but {type} is the type of the field in the records "
                "before; make it a float in all of them"
            )


def _has_integers(type: pa.DataType) -> bool:
    import pyarrow as pa

    if _is_list(type):
        return _has_integers(type.value_type)
    return pa.types.is_integer(type) or (pa.types.is_struct(type) and any(_has_integers(f.type) for f in type))


def _loses_fraction(value: Any, type: pa.DataType) -> bool:
    import pyarrow as pa

    if isinstance(value, np.ndarray):
        while _is_list(type):
            type = type.value_type
        return pa.types.is_integer(type) and value.dtype.kind == "f" and bool((value != np.trunc(value)).any())
    if isinstance(value, list | tuple):
        return _is_list(type) and any(_loses_fraction(part, type.value_type) for part in value)
    if isinstance(value, dict):
        return pa.types.is_struct(type) and any(_loses_fraction(value.get(f.name), f.type) for f in type)
    return isinstance(value, float | np.floating) and pa.types.is_integer(type) and not float(value).is_integer()


def _plain(value: Any) -> Any:
    """What pyarrow converts: arrays of one axis it takes as they are."""
    if isinstance(value, np.ndarray) and not (value.ndim == 1 and value.dtype.kind in "biuf"):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value
