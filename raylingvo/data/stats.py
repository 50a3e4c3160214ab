"""What is in some records: how many, how long, and which buckets would suit them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raylingvo.data import buckets
from raylingvo.data.convert import as_fields
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
    tokens_per_batch: int = 4096,
    num_buckets: int = 12,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """A JSON value about the records of a pattern.

    The length of a record is that of the longest of `fields` (columns or keys; numbers of tab-separated fields, from 0;
    (): the whole line, or all texts of the record): tokens if there is a tokenizer, else words of text, ids of a list,
    and bytes of what is neither. progress is called with (records done, all records).

    {"pattern", "records", "unit", "lengths": {"min", "mean", "max", "total", "p50", ..}, "histogram": [[upper bound,
    records], ..], "buckets": {"upper_bounds", "batch_sizes", "padding_waste"}}. Raises RequestError if there is no such
    data or field, or a record is damaged.
    """
    records = open_records(pattern)
    if not len(records):
        raise RequestError(f"{pattern}: there are no records")
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
    """The first records as JSON values; bytes that are no text as {"bytes": how many, "hex": the first ones}."""
    records = open_records(pattern)
    return [_json(record) for record in records.read(np.arange(min(number, len(records))))]


def texts(pattern: str, fields: Sequence[str] = ()) -> Iterator[str]:
    """The texts in `fields` (as for `stats`) of all records. Raises RequestError if one is no text."""
    records = open_records(pattern)
    for start in range(0, len(records), _CHUNK):
        chunk = np.arange(start, min(start + _CHUNK, len(records)))
        for i, record in zip(chunk.tolist(), records.read(chunk), strict=True):
            for value in _values(records, tuple(fields), record, i):
                text = _text(value)
                if text is None:
                    raise RequestError(f"{records.where(i)} holds no text; name a field that does with --field")
                yield text


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
        self.unit = "tokens" if tokenizer else "words"

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """i64[B]"""
        taken = zip(indices.tolist(), self._records.read(indices), strict=True)
        rows = [_values(self._records, self._fields, record, i) for i, record in taken]
        number = max(len(row) for row in rows)
        columns = [[row[c] if c < len(row) else "" for row in rows] for c in range(number)]
        return np.max([self._lengths(column) for column in columns], axis=0)

    def _lengths(self, values: list[Any]) -> np.ndarray:
        texts = [_text(value) for value in values]
        if any(text is None for text in texts):
            if self._tokenizer:
                raise RequestError("only text can be measured with a tokenizer; name its field with --field")
            self.unit = "bytes" if any(isinstance(value, bytes) for value in values) else "ids"
            return np.array([len(value) for value in values])
        if self._tokenizer:
            return np.array([len(ids) for ids in self._tokenizer.encode_ragged([text or "" for text in texts])])
        return np.array([len((text or "").split()) for text in texts])


def _values(records: Records, fields: Sequence[str], record: Any, index: int) -> list[Any]:
    """What is in the fields of a record; of no fields, all that has a length."""
    record = as_fields(record)
    parts: Mapping[str, Any]
    if isinstance(record, Mapping):
        parts = record
    else:
        parts = {str(i): part for i, part in enumerate(record.split(b"\t"))} if fields else {"": record}
    for field in fields:
        if field not in parts:
            raise RequestError(f"{records.where(index)} has no field {field!r}; it has {', '.join(parts) or 'none'}")
    values = [parts[field] for field in fields] or list(parts.values())
    return [value for value in values if isinstance(value, str | bytes | list | np.ndarray)] or [b""]


def _text(value: Any) -> str | None:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], bytes):
        value = value[0]  # a text in a tf.Example
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None
        return value if "\0" not in value else None
    return value if isinstance(value, str) else None


def _histogram(length_N: np.ndarray, bins: int = 32) -> list[list[int]]:
    """(inclusive upper bound, records) of at most `bins` ranges of one width."""
    width = max(1, -(-int(length_N.max() + 1) // bins))
    number = np.bincount(length_N // width)
    return [[(i + 1) * width - 1, int(n)] for i, n in enumerate(number)]


def _json(value: Any) -> Any:
    value = as_fields(value)
    if isinstance(value, list):
        return [_json(part) for part in value]
    if isinstance(value, Mapping):
        return {name: _json(part) for name, part in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        text = _text(value)
        return text if text is not None else {"bytes": len(value), "hex": value[:32].hex()}
    return value
