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

from raylingvo.data.fields import MissingFieldError
from raylingvo.data.records import CorruptRecordError, Records
from raylingvo.data.sequences import Column, Ragged
from raylingvo.errors import RequestError

# N examples, C columns.

# What `parse` gives for some records: for each column a list of integers [T], one for each record. Raises ValueError if
# one of them is no example.
Parse = Callable[[list[Any]], list[list[np.ndarray]]]

_CHUNK = 2048  # records read and parsed at once
_VERSION = 2  # of the files in the cache
_MAX_PROBLEMS = 20


@dataclasses.dataclass(frozen=True, eq=False)
class TokenStore:
    """A SequenceSource in arrays, which may be files mapped into memory."""

    columns: Sequence[Column]
    length_NxC: np.ndarray
    tokens: Sequence[np.ndarray]  # of each column: i32, all examples one behind the other
    record_N: np.ndarray  # i64[N], the record that an example was made from: bad ones are left out
    facts: Mapping[str, float]
    problems: Sequence[str] = ()  # a line with the place and the reason of each bad record, of at most 20

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
    fingerprint: Callable[[], str],
    open_records: Callable[[], Records],
    parse: Parse,
    columns: Sequence[Column],
    *,
    max_bad_records: int = 0,
) -> TokenStore:
    """The tokens of all records, from the cache if they are there, else made now and put there.

    fingerprint: says what the tokens depend on: the state of all files, and what `parse` does. open_records: called
    only if the tokens must be made. max_bad_records: so many records that are damaged, or no examples, are left out and
    counted as `num_bad_records`; with one more the first of them is raised as a RequestError, in one line with its
    place. So is a field that the first record does not have, and a change of the fingerprint meanwhile.
    """
    key = fingerprint()
    folder = cache_folder("tokens") / hashlib.sha256(f"{_VERSION}\0{key}".encode()).hexdigest()[:32]
    store = _load(folder, columns)
    if store is None:
        records = open_records()
        try:
            made = _make(records, parse, columns, max_bad_records)
        finally:
            records.close()
        if fingerprint() != key:
            raise RequestError("data or a vocabulary have changed while tokens were made of them; start again")
        _save(made, folder)
        return _load(folder, columns) or made
    if store.facts["num_bad_records"] > max_bad_records:
        raise _too_many(store.problems[0], int(store.facts["num_bad_records"]), max_bad_records)
    return store


def cache_folder(kind: str) -> Path:
    """Where things lie that can be made again: `raylingvo/KIND` in the user's cache ($XDG_CACHE_HOME or ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "raylingvo" / kind


class _BadRecords:
    """Counts bad records and keeps the first lines about them."""

    def __init__(self, allowed: int):
        self.number = 0
        self.problems: list[str] = []
        self._allowed = allowed

    def add(self, problem: str) -> None:
        """Raises RequestError if it is one too many."""
        self.number += 1
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(problem)
        if self.number > self._allowed:
            raise _too_many(self.problems[0], self.number, self._allowed, so_far=" so far")


def _too_many(problem: str, number: int, allowed: int, so_far: str = "") -> RequestError:
    more = f"; {number} bad records{so_far}" if number > 1 else ""
    return RequestError(f"{problem}{more}; max_bad_records is {allowed}")


def _make(records: Records, parse: Parse, columns: Sequence[Column], max_bad_records: int) -> TokenStore:
    lengths: list[np.ndarray] = []
    tokens: list[list[np.ndarray]] = [[] for _ in columns]
    numbers: list[np.ndarray] = []
    bad = _BadRecords(max_bad_records)
    for problem in records.problems:
        bad.add(problem)
    for start in range(0, len(records), _CHUNK):
        chunk = np.arange(start, min(start + _CHUNK, len(records)))
        for good, length_BxC, parsed in _parsed(records, parse, chunk, bad):
            numbers.append(good)
            lengths.append(length_BxC)
            for column, token_T in zip(tokens, parsed, strict=True):
                column.append(token_T)
    if not numbers:
        raise RequestError(f"{records.where(0) if len(records) else 'the data'}: there is not one example")
    return TokenStore(
        columns=columns,
        length_NxC=np.concatenate(lengths),
        tokens=[np.concatenate(column) for column in tokens],
        record_N=np.concatenate(numbers),
        facts={"num_bad_records": float(bad.number)},
        problems=bad.problems,
    )


def _parsed(
    records: Records, parse: Parse, chunk: np.ndarray, bad: _BadRecords
) -> Iterator[tuple[np.ndarray, np.ndarray, list[np.ndarray]]]:
    """The good records of a chunk, the lengths [B, C] of what they were parsed to, and its tokens for each column."""
    try:
        yield chunk, *_arrays(parse(records.read(chunk)))
        return
    except (CorruptRecordError, ValueError):
        pass  # Which of them: one at a time.
    for i in chunk.tolist():
        one = np.array([i])
        try:
            yield one, *_arrays(parse(records.read(one)))
        except CorruptRecordError as error:
            bad.add(str(error))
        except ValueError as error:
            problem = f"{records.where(i)}: {error}"
            if i == 0 and isinstance(error, MissingFieldError):
                # The setting is wrong, and not the data.
                raise RequestError(problem) from error
            bad.add(problem)


def _arrays(parsed: list[list[np.ndarray]]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Raises ValueError for an id that is not an i32 >= 0."""
    length_BxC = np.array([[len(x) for x in column] for column in parsed], np.int64).T
    return length_BxC, [_ids(np.concatenate(column)) for column in parsed]


def _ids(token_T: np.ndarray) -> np.ndarray:
    wrong = token_T[(token_T < 0) | (token_T >= 1 << 31)]
    if wrong.size:
        raise ValueError(f"an id must be in [0, 2^31) (got {wrong[0]})")
    return token_T.astype(np.int32)


def _save(store: TokenStore, folder: Path) -> None:
    """Puts it into the cache if that can be: a cache that cannot be written makes the next start slower, no more."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix="new-", dir=folder.parent))
    except OSError:
        return
    try:
        np.save(temporary / "length.npy", store.length_NxC, allow_pickle=False)
        np.save(temporary / "record.npy", store.record_N, allow_pickle=False)
        for c, tokens in enumerate(store.tokens):
            np.save(temporary / f"token{c}.npy", tokens, allow_pickle=False)
        about = {"facts": dict(store.facts), "problems": list(store.problems)}
        (temporary / "facts.json").write_text(json.dumps(about))
        _put(temporary, folder, store.columns)
    except OSError:
        pass  # A full disk: nothing is left behind.
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put(temporary: Path, folder: Path, columns: Sequence[Column]) -> None:
    """Renames a folder, in place of one that is broken."""
    if os.path.lexists(folder):
        if _load(folder, columns) is not None:
            return  # Another process was first.
        broken = temporary.with_name(f"{temporary.name}-broken")
        folder.rename(broken)
        if broken.is_dir() and not broken.is_symlink():
            shutil.rmtree(broken, ignore_errors=True)
        else:
            broken.unlink()
    temporary.rename(folder)


def _load(folder: Path, columns: Sequence[Column]) -> TokenStore | None:
    """None if it is not there, or not whole."""
    try:
        about = json.loads((folder / "facts.json").read_text())
        store = TokenStore(
            columns=columns,
            length_NxC=_mapped(folder / "length.npy", np.int64, 2),
            tokens=[_mapped(folder / f"token{c}.npy", np.int32, 1) for c in range(len(columns))],
            record_N=_mapped(folder / "record.npy", np.int64, 1),
            facts={str(name): float(value) for name, value in about["facts"].items()},
            problems=[str(line) for line in about["problems"]],
        )
        return store if _is_whole(store) else None
    # What json and NumPy raise for files that are empty, cut or of something else.
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _mapped(file: Path, dtype: type, ndim: int) -> np.ndarray:
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != ndim:
        raise ValueError(f"{file} is not an array of the cache")
    return array


def _is_whole(store: TokenStore) -> bool:
    """Whether the files belong together."""
    length_NxC = store.length_NxC
    return (
        length_NxC.shape == (len(store.record_N), len(store.columns))
        and len(length_NxC) > 0
        and int(length_NxC.min()) >= 0
        and length_NxC.sum(axis=0).tolist() == [len(tokens) for tokens in store.tokens]
        and store.facts["num_bad_records"] >= len(store.problems)
        and (store.facts["num_bad_records"] == 0 or len(store.problems) > 0)
    )
