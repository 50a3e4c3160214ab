"""Sentence pairs from text, each with one more sentence of the target's language, for XEnDec."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from raylingvo.data import fields
from raylingvo.data.records import Records, files_fingerprint, open_records
from raylingvo.data.sequences import Column
from raylingvo.data.text import TextPairs, pair_columns
from raylingvo.data.token_store import Parse
from raylingvo.errors import RequestError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextDoubles(TextPairs):
    """Pairs of texts, as TextPairs, and other sentences of the target's language, each of them twice.

    Batches: those of TextPairs, and `other_src_ids`, `other_src_paddings`, `other_tgt_ids`, `other_tgt_labels`,
    `other_tgt_paddings`, as of DoubleExamples. An example goes into a bucket by the longest of all.

    mono_records: records of the other sentences; "": they are the targets of the pairs themselves. Pair i always goes
    with number i modulo their number; what exceeds the number of pairs is not read.
    mono_field: their column or key; "": the records are lines.

    Raises ValueError if the tokenizers differ: other sentences are sources too.
    """

    mono_records: str = ""
    mono_field: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source_tokenizer != self.target_tokenizer:
            raise ValueError("target_tokenizer must be source_tokenizer: the other sentences are sources too")

    def _columns(self) -> Sequence[Column]:
        pair = pair_columns(*self._tokenizers())
        return *pair, *(dataclasses.replace(column, name=f"other_{column.name}") for column in pair)

    def _open_records(self) -> Records:
        pairs = super()._open_records()
        return _WithMono(pairs, open_records(self.mono_records)) if self.mono_records else pairs

    def _files(self) -> str:
        return super()._files() + (files_fingerprint(self.mono_records) if self.mono_records else "")

    def _texts(self, records: list[Any]) -> tuple[list[str], list[str]]:
        return super()._texts([pair for pair, _ in records] if self.mono_records else records)

    def _parser(self) -> Parse:
        def parse(records: list[Any]) -> list[list[np.ndarray]]:
            source, target = self._texts(records)
            other = [fields.text(mono, self.mono_field) for _, mono in records] if self.mono_records else target
            encode = self.target_tokenizer.encode_ragged
            twice = encode(other)
            return [encode(source), encode(target), twice, twice]

        return parse


class _WithMono:
    """Records of pairs, each with one of other sentences: (pair, sentence)."""

    def __init__(self, pairs: Records, mono: Records):
        if not len(mono):
            raise RequestError("mono_records has no records")
        self._pairs, self._mono = pairs, mono
        self.fingerprint = f"{pairs.fingerprint}{mono.fingerprint}"
        self.problems = pairs.problems + mono.problems

    def __len__(self) -> int:
        return len(self._pairs)

    def read(self, indices: np.ndarray) -> list[Any]:
        return list(zip(self._pairs.read(indices), self._mono.read(indices % len(self._mono)), strict=True))

    def where(self, index: int) -> str:
        return f"{self._pairs.where(index)} or {self._mono.where(index % len(self._mono))}"

    def close(self) -> None:
        self._pairs.close()
        self._mono.close()
