"""What is in some records: how many, how long, and which buckets would suit them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raylingvo.data import buckets
from raylingvo.data.fields import MissingFieldError, as_fields, fields_of, text_of
from raylingvo.data.records import Records, open_records
from raylingvo.data.tokenizers import Tokenizer
from raylingvo.errors import RequestError

_CHUNK = 4096  # records
_PERCENTILES = (50, 90, 95, 99)


def stats(
    pattern: str,
    *,
    fields: Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    target: str = "",
    target_tokenizer: Tokenizer | None = None,
    tokens_per_batch: int = 4096,
    num_buckets: int = 12,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """A JSON value about the records of a pattern.

    The length of a record is that of the longest of `fields` (columns or keys; numbers of tab-separated fields, from 0;
    (): the whole line, or all texts of the record, and without any all that has a length): tokens if there is a
    tokenizer, else words of text, ids of a list, and bytes of what is neither. The first records decide which; a null
    counts as empty. progress is called with (records done, all records).

    target: a pattern of as many records that belong to the first ones by their order, such as translations; the length
    is then that of the longer of the two. `fields` are at most two, one of each; a single one is of both.
    target_tokenizer: of the target; None: `tokenizer`.

    {"pattern", "records", "unit", "lengths": {"min", "mean", "max", "total", "p50", ..}, "histogram": [[upper bound,
    records], ..], "buckets": {"upper_bounds", "batch_sizes", "padding_waste"}}, and "target" if there is one. Raises
    RequestError if there is no such data or field, a record is damaged, or source and target do not belong together.
    """
    records = open_records(pattern)
    if not len(records):
        raise RequestError(f"{pattern}: there are no records")
    if target:
        measure = _of_pairs(records, open_records(target), fields, tokenizer, target_tokenizer)
    elif target_tokenizer:
        raise RequestError("a tokenizer of targets needs targets")
    else:
        measure = _Measure(records, tuple(fields), tokenizer)
    lengths = []
    for start in range(0, len(records), _CHUNK):
        chunk = np.arange(start, min(start + _CHUNK, len(records)))
        lengths.append(measure(chunk))
        progress(int(chunk[-1]) + 1, len(records))
    length_N = np.concatenate(lengths)
    suited = buckets.suggest(length_N, tokens_per_batch, num_buckets)
    return {
        "pattern": pattern,
        **({"target": target} if target else {}),
        "records": len(length_N),
        "unit": measure.unit,
        "lengths": {
            "min": int(length_N.min()),
            "mean": float(length_N.mean()),
            "max": int(length_N.max()),
            "total": int(length_N.sum()),
            **{f"p{p}": int(np.percentile(length_N, p, method="inverted_cdf")) for p in _PERCENTILES},
        },
        "histogram": _histogram(length_N),
        "buckets": {
            "upper_bounds": list(suited.upper_bounds),
            "batch_sizes": list(suited.batch_sizes),
            "padding_waste": suited.padding_waste(length_N),
        },
    }


def head(pattern: str, number: int) -> list[Any]:
    """The first records as JSON values; bytes that are no text as {"bytes": how many, "hex": the first ones}.

    Numbers that are not finite are null; what JSON has no form for, such as a time, is its `str`.
    """
    records = open_records(pattern)
    return [_json(record) for record in records.read(np.arange(min(number, len(records))))]


def texts(pattern: str, fields: Sequence[str] = ()) -> Iterator[str]:
    """The texts in `fields` (as for `stats`) of all records, without nulls. Raises RequestError if one is no text."""
    records = open_records(pattern)
    for start in range(0, len(records), _CHUNK):
        chunk = np.arange(start, min(start + _CHUNK, len(records)))
        for i, row in zip(chunk.tolist(), _rows(records, chunk, fields), strict=True):
            asked = [value for value in row.values() if fields or _may_be_text(value)]
            found = [text_of(value) for value in asked if not _is_empty(value)]
            if not asked or None in found:
                raise RequestError(f"{records.where(i)} holds no text; name a field that does with --field")
            yield from (text for text in found if text is not None)


def count(pattern: str) -> int:
    """The number of records."""
    return len(open_records(pattern))


def plot(result: Mapping[str, Any], out: Path) -> Path:
    """Draws the lengths of `stats` and the suggested bounds to a PNG. Raises RequestError if it cannot be written."""
    from matplotlib.figure import Figure

    upper, number = (np.array(column) for column in zip(*result["histogram"], strict=True))
    lower = np.concatenate([[min(0, int(upper[0]) - 1)], upper[:-1]])
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.bar(lower, number, width=upper - lower, align="edge", color="tab:blue")
    for bound in result["buckets"]["upper_bounds"]:
        axes.axvline(bound, color="tab:orange", linewidth=1, label="suggested bound")
    axes.legend(*(part[:1] for part in axes.get_legend_handles_labels()))
    axes.set(xlabel=f"length in {result['unit']}", ylabel="records", title=f"{result['records']:,} records")
    try:
        figure.savefig(out, format="png", dpi=120)
    except OSError as error:
        raise RequestError(f"--out {out}: cannot be written ({error.strerror})") from error
    return out


class _Measure:
    """Lengths of records. `unit` is known once some have been measured."""

    def __init__(self, records: Records, fields: Sequence[str], tokenizer: Tokenizer | None):
        self._records, self._fields, self._tokenizer = records, fields, tokenizer
        self._measured: Sequence[str] | None = None
        self._unit = "words"

    @property
    def unit(self) -> str:
        return "tokens" if self._tokenizer else self._unit

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """i64[B]"""
        rows = _rows(self._records, indices, self._fields)
        if self._measured is None:
            self._measured, self._unit = self._decide(rows, self._records.where(int(indices[0])))
        for i, row in zip(indices.tolist(), rows, strict=True):
            if row.keys().isdisjoint(self._measured):
                named = ", ".join(map(repr, self._measured))
                raise RequestError(f"{self._records.where(i)} has none of the fields of the first records, {named}")
        length_B = np.zeros(len(rows), np.int64)
        for name in self._measured:
            np.maximum(length_B, self._lengths(name, [row.get(name) for row in rows], indices), out=length_B)
        return length_B

    def _decide(self, rows: Sequence[Mapping[str, Any]], where: str) -> tuple[Sequence[str], str]:
        """Which fields are measured, of those of the first record, and the unit: that of the first value with one."""
        names = self._fields or list(rows[0])
        units = {name: next(filter(None, (_unit(row.get(name)) for row in rows)), "") for name in names}
        known = set(units.values()) - {""}
        if not self._fields and known:
            if "words" in known or self._tokenizer:
                known = {"words"}
            names = [name for name in names if units[name] in known]
        if len(known) > 1:
            listed = ", ".join(f"{name!r} in {unit}" for name, unit in units.items() if unit)
            raise RequestError(f"{where}: these fields have no unit in common: {listed}; name others with --field")
        unit = known.pop() if known else "words"
        if self._tokenizer and (unit != "words" or not names):
            raise RequestError(f"{where}: only text can be measured with a tokenizer; name its field with --field")
        return names, unit

    def _lengths(self, name: str, values: Sequence[Any], indices: np.ndarray) -> np.ndarray:
        texts: list[str] = []
        length_B = np.zeros(len(values), np.int64)
        for row, value in enumerate(values):
            content = "" if _is_empty(value) else _CONTENTS[self._unit](value)
            if content is None:
                where, what = self._records.where(int(indices[row])), f"field {name!r}" if name else "it"
                raise RequestError(
                    f"{where}: {what} has no length in {self._unit}, in which the first records have one"
                )
            if self._unit == "words":
                texts.append(content)
            else:
                length_B[row] = len(content)
        if self._unit == "words":
            tokens = self._tokenizer.encode_ragged(texts) if self._tokenizer else map(str.split, texts)
            length_B[:] = [len(ids) for ids in tokens]
        return length_B


class _Longer:
    """The longer of two records, measured each by itself."""

    def __init__(self, source: _Measure, target: _Measure):
        self._source, self._target = source, target

    @property
    def unit(self) -> str:
        return self._source.unit

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """i64[B]"""
        length_B = np.maximum(self._source(indices), self._target(indices))
        if self._source.unit != self._target.unit:
            raise RequestError(
                f"source and target have no unit in common: {self._source.unit} and {self._target.unit}; "
                "name other fields with --field"
            )
        return length_B


def _of_pairs(
    sources: Records,
    targets: Records,
    fields: Sequence[str],
    tokenizer: Tokenizer | None,
    target_tokenizer: Tokenizer | None,
) -> _Longer:
    if len(sources) != len(targets):
        raise RequestError(
            f"sources and targets do not belong together: there are {len(sources)} and {len(targets)} records"
        )
    if len(fields) > 2:
        raise RequestError(f"with targets there may be two fields, one of each (got {', '.join(fields)})")
    source = _Measure(sources, tuple(fields[:1]), tokenizer)
    return _Longer(source, _Measure(targets, tuple(fields[-1:]), target_tokenizer or tokenizer))


def _rows(records: Records, indices: np.ndarray, fields: Sequence[str]) -> list[dict[str, Any]]:
    """What is in the fields of these records; of no fields, all that there is."""
    rows = []
    for i, record in zip(indices.tolist(), records.read(indices), strict=True):
        try:
            rows.append(fields_of(record, fields))
        except MissingFieldError as error:
            raise RequestError(f"{records.where(i)}: {error}") from error
    return rows


def _is_empty(value: Any) -> bool:
    """Whether there is nothing in it, which has a length in any unit."""
    return value is None or (isinstance(value, bytes | list) and not value)


def _may_be_text(value: Any) -> bool:
    """Not so ids and numbers beside a text; bytes that are none may be a damaged one."""
    return _is_empty(value) or _unit(value) in ("words", "bytes")


def _unit(value: Any) -> str:
    """In what the length of a value is measured; "" for what is empty, or has no length."""
    if _is_empty(value):
        return ""
    if text_of(value) is not None:
        return "words"
    if _raw(value) is not None:
        return "bytes"
    return "ids" if _is_list(value) else ""


def _raw(value: Any) -> bytes | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]  # of a tf.Example
    return value if isinstance(value, bytes) else None


def _is_list(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim > 0)


# What has the length of a value in a unit; None: it has none.
_CONTENTS: dict[str, Callable[[Any], Any]] = {
    "words": text_of,
    "bytes": _raw,
    "ids": lambda value: value if _is_list(value) else None,
}


def _histogram(length_N: np.ndarray, bins: int = 32) -> list[list[int]]:
    """(inclusive upper bound, records) of at most `bins` ranges of one width."""
    width = max(1, -(-int(length_N.max() + 1) // bins))
    number = np.bincount(length_N // width)
    return [[(i + 1) * width - 1, int(n)] for i, n in enumerate(number)]


def _json(value: Any) -> Any:
    value = as_fields(value)
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_json(part) for part in value]
    if isinstance(value, Mapping):
        return {str(name): _json(part) for name, part in value.items()}
    if isinstance(value, bytes):
        text = text_of(value)
        return text if text is not None else {"bytes": len(value), "hex": value[:32].hex()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    # JSON escapes may stand for half a character, which no terminal or pipe takes.
    return str(value).encode(errors="backslashreplace").decode()
