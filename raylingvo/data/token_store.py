"""The tokens of all examples of a dataset: made once, kept in the user's cache, mapped into memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raylingvo.data.records import CorruptRecordError, Records
from raylingvo.data.sequences import Column, Ragged
from raylingvo.errors import RequestError

# N examples, C columns.

# What `parse` gives for some records: for each column a list of i32[T], one for each record. Raises ValueError if one
# of them is no example.
Parse = Callable[[list[Any]], list[list[np.ndarray]]]

_CHUNK = 2048  # records read and parsed at once
_VERSION = 1  # of the files in the cache


@dataclasses.dataclass(frozen=True, eq=False)
class TokenStore:
    """A SequenceSource in arrays, which may be files mapped into memory."""

    columns: Sequence[Column]
    length_NxC: np.ndarray
    tokens: Sequence[np.ndarray]  # of each column: i32, all examples one behind the other
    record_N: np.ndarray  # i64[N], the record that an example was made from: bad ones are left out
    facts: Mapping[str, float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_end_NxC", np.cumsum(self.length_NxC, axis=0))

    @property
    def groups(self) -> Sequence[tuple[int, float]]:
        return [(len(self.length_NxC), 1.0)]

    def take(self, indices: np.ndarray) -> list[Ragged]:
        """The examples at `indices` (i64[B]), in that order, for each of the C columns."""
        found = []
        ends_BxC: np.ndarray = getattr(self, "_end_NxC")[indices]  # noqa: B009 - no field: it follows from them
        for c, tokens in enumerate(self.tokens):
            length_B = self.length_NxC[indices, c]
            parts = [tokens[end - n : end] for end, n in zip(ends_BxC[:, c].tolist(), length_B.tolist(), strict=True)]
            found.append(Ragged(np.concatenate([np.empty(0, np.int32), *parts]), length_B))
        return found


def open_token_store(
    records: Records, parse: Parse, columns: Sequence[Column], *, key: str, max_bad_records: int = 0
) -> TokenStore:
    """The tokens of all records, from the cache if they are there, else made now and put there.

    key: says what `parse` does: its settings, and the state of the files it uses. max_bad_records: so many records that
    are damaged, or no examples, are left out and counted as `num_bad_records`; with one more the first of them is
    raised as a RequestError, in one line with its place.
    """
    name = hashlib.sha256(f"{_VERSION}\0{records.fingerprint}\0{key}".encode()).hexdigest()[:32]
    folder = cache_folder("tokens") / name
    if not (folder / "facts.json").exists():
        made = _make(records, parse, columns, max_bad_records)
        if not _save(made, folder):
            return made
    store = _load(folder, columns)
    _check_bad(store.facts, max_bad_records)
    return store


def cache_folder(kind: str) -> Path:
    """Where things lie that can be made again: `raylingvo/KIND` in the user's cache ($XDG_CACHE_HOME or ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "raylingvo" / kind


def _make(records: Records, parse: Parse, columns: Sequence[Column], max_bad_records: int) -> TokenStore:
    lengths: list[np.ndarray] = []
    tokens: list[list[np.ndarray]] = [[] for _ in columns]
    numbers: list[np.ndarray] = []
    bad = list(records.problems)
    _refuse(bad, max_bad_records)
    for start in range(0, len(records), _CHUNK):
        chunk = np.arange(start, min(start + _CHUNK, len(records)))
        for good, parsed in _parsed(records, parse, chunk, bad, max_bad_records):
            numbers.append(good)
            lengths.append(np.array([[len(x) for x in column] for column in parsed], np.int64).T)
            for column, arrays in zip(tokens, parsed, strict=True):
                column.append(np.concatenate(arrays).astype(np.int32))
    if not numbers:
        raise RequestError(f"{records.where(0) if len(records) else 'the data'}: there is not one example")
    return TokenStore(
        columns=columns,
        length_NxC=np.concatenate(lengths),
        tokens=[np.concatenate(column) for column in tokens],
        record_N=np.concatenate(numbers),
        facts={"num_bad_records": float(len(bad))},
    )


def _parsed(
    records: Records, parse: Parse, chunk: np.ndarray, bad: list[str], max_bad_records: int
) -> Iterator[tuple[np.ndarray, list[list[np.ndarray]]]]:
    """The good records of a chunk with what they were parsed to; adds a line to `bad` for each of the others."""
    try:
        yield chunk, parse(records.read(chunk))
        return
    except (CorruptRecordError, ValueError):
        pass  # Which of them: one at a time.
    for i in chunk:
        one = np.array([i])
        try:
            yield one, parse(records.read(one))
        except CorruptRecordError as error:
            bad.append(str(error))
            _refuse(bad, max_bad_records)
        except ValueError as error:
            bad.append(f"{records.where(int(i))}: {error}")
            _refuse(bad, max_bad_records)


def _refuse(bad: Sequence[str], max_bad_records: int) -> None:
    if len(bad) > max_bad_records:
        more = f"; {len(bad)} bad records so far" if len(bad) > 1 else ""
        raise RequestError(f"{bad[0]}{more}; max_bad_records is {max_bad_records}")


def _check_bad(facts: Mapping[str, float], max_bad_records: int) -> None:
    if facts["num_bad_records"] > max_bad_records:
        raise RequestError(f"{facts['num_bad_records']:.0f} bad records; max_bad_records is {max_bad_records}")


def _save(store: TokenStore, folder: Path) -> bool:
    """Whether it is in the cache now. A cache that cannot be written makes the next start slower, no more."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix="new-", dir=folder.parent))
    except OSError:
        return False
    try:
        np.save(temporary / "length.npy", store.length_NxC)
        np.save(temporary / "record.npy", store.record_N)
        for c, tokens in enumerate(store.tokens):
            np.save(temporary / f"token{c}.npy", tokens)
        (temporary / "facts.json").write_text(json.dumps(dict(store.facts)))
        temporary.rename(folder)
    except OSError:
        # Another process may have been first; a full disk leaves nothing behind.
        shutil.rmtree(temporary, ignore_errors=True)
    return (folder / "facts.json").exists()


def _load(folder: Path, columns: Sequence[Column]) -> TokenStore:
    return TokenStore(
        columns=columns,
        length_NxC=np.load(folder / "length.npy", mmap_mode="r"),
        tokens=[np.load(folder / f"token{c}.npy", mmap_mode="r") for c in range(len(columns))],
        record_N=np.load(folder / "record.npy", mmap_mode="r"),
        facts=json.loads((folder / "facts.json").read_text()),
    )
