"""Sequences of token ids: what a source of them is, and how some of them become arrays of one shape."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

# N examples, B of them in a batch, C columns (source and target, say), L positions of a row, T tokens in all.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A sequence that every example has.

    A column with `sos_id` is one that a model is to predict: its tokens are the `labels`, and its `ids` are the same
    shifted right by one, with `sos_id` first. The tokens of any other are its `ids`.
    """

    name: str  # its fields are called NAME_ids and so on; "": ids and so on
    pad_id: int
    sos_id: int | None = None

    def field(self, name: str) -> str:
        """The name of one of its fields in a batch."""
        return f"{self.name}_{name}" if self.name else name


class Ragged:
    """Some sequences of one column: token_T i32[T], one behind the other, and length_B i64[B]."""

    def __init__(self, token_T: np.ndarray, length_B: np.ndarray):
        self.token_T = token_T
        self.length_B = length_B

    def __len__(self) -> int:
        return len(self.length_B)

    def take(self, indices: np.ndarray) -> Ragged:
        """The sequences at `indices`, in that order."""
        starts = np.cumsum(self.length_B) - self.length_B
        length_B = self.length_B[indices]
        shift_B = starts[indices] - (np.cumsum(length_B) - length_B)
        return Ragged(self.token_T[np.arange(length_B.sum()) + np.repeat(shift_B, length_B)], length_B)


class SequenceSource(Protocol):
    """Random access to examples that are sequences, one for each column."""

    @property
    def columns(self) -> Sequence[Column]: ...

    @property
    def length_NxC(self) -> np.ndarray:
        """i64[N, C], tokens of each column of each example."""
        ...

    @property
    def record_N(self) -> np.ndarray:
        """i64[N], the number of the record that each example was made from, in its own source."""
        ...

    @property
    def facts(self) -> Mapping[str, float]:
        """What there is to know about the data, as metrics: `num_bad_records` and the like."""
        ...

    @property
    def groups(self) -> Sequence[tuple[int, float]]:
        """Where the examples come from: (number, weight) of each source, in their order. One source: [(N, 1.0)]."""
        ...

    def take(self, indices: np.ndarray) -> list[Ragged]:
        """The examples at `indices` (i64[B]), in that order, for each of the C columns."""
        ...


def digest(source: SequenceSource, **settings: Any) -> str:
    """16 hexadecimal digits that tell apart what a position belongs to: the lengths in their order, and how they are
    batched.
    """
    found = hashlib.blake2b(digest_size=8)
    columns = [dataclasses.astuple(column) for column in source.columns]
    found.update(json.dumps([columns, list(source.groups), settings], sort_keys=True).encode())
    found.update(np.ascontiguousarray(source.length_NxC, np.int64).tobytes())
    return found.hexdigest()


def pad(columns: Sequence[Column], sequences: Sequence[Ragged], length: int) -> dict[str, np.ndarray]:
    """Right-padded arrays of C columns: `ids` and `labels` i32[B, L], `paddings` f32[B, L], 1.0 where padded.

    length: L, not shorter than any of the sequences.
    """
    batch: dict[str, np.ndarray] = {}
    for column, ragged in zip(columns, sequences, strict=True):
        real_BxL = np.arange(length) < ragged.length_B[:, None]
        token_BxL = np.full(real_BxL.shape, column.pad_id, np.int32)
        token_BxL[real_BxL] = ragged.token_T
        starts_BxL = np.broadcast_to(np.arange(length) == 0, real_BxL.shape)
        batch |= _fields(column, token_BxL, real_BxL, starts_BxL)
    return batch


def pack(
    columns: Sequence[Column], sequences: Sequence[Ragged], row_B: np.ndarray, num_rows: int, lengths: Sequence[int]
) -> dict[str, np.ndarray]:
    """Rows of several sequences: the fields of `pad`, and `segment_ids` (1, 2, .. in a row; 0: padding), `segment_pos`.

    row_B: i64[B], not decreasing, the row of each example; within a row they keep their order. lengths: the positions
    of a row of each column; nothing may overflow.
    """
    batch: dict[str, np.ndarray] = {}
    segment_B = np.arange(len(row_B)) - np.searchsorted(row_B, row_B) + 1
    for column, ragged, length in zip(columns, sequences, lengths, strict=True):
        first_B = np.cumsum(ragged.length_B) - ragged.length_B  # where each sequence starts in token_T
        start_B = first_B - first_B[np.searchsorted(row_B, row_B)] if len(row_B) else first_B  # and in its row
        example_T = np.repeat(np.arange(len(row_B)), ragged.length_B)
        position_T = np.arange(len(ragged.token_T)) - first_B[example_T]
        where = row_B[example_T], start_B[example_T] + position_T
        token_RxL = np.full((num_rows, length), column.pad_id, np.int32)
        segment_RxL, position_RxL = np.zeros((2, num_rows, length), np.int32)
        token_RxL[where] = ragged.token_T
        segment_RxL[where] = segment_B[example_T]
        position_RxL[where] = position_T
        batch |= _fields(column, token_RxL, segment_RxL > 0, (segment_RxL > 0) & (position_RxL == 0))
        batch[column.field("segment_ids")] = segment_RxL
        batch[column.field("segment_pos")] = position_RxL
    return batch


def _fields(
    column: Column, token_BxL: np.ndarray, real_BxL: np.ndarray, starts_BxL: np.ndarray
) -> dict[str, np.ndarray]:
    """starts_BxL: bool, where a sequence starts."""
    fields = {column.field("paddings"): np.where(real_BxL, 0, 1).astype(np.float32)}
    if column.sos_id is None:
        return {column.field("ids"): token_BxL} | fields
    shifted_BxL = np.roll(token_BxL, 1, axis=1)
    ids_BxL = np.where(starts_BxL & real_BxL, column.sos_id, np.where(real_BxL, shifted_BxL, column.pad_id))
    return {column.field("ids"): ids_BxL.astype(np.int32), column.field("labels"): token_BxL} | fields
