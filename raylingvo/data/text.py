"""Datasets of text, and of token ids made elsewhere, as sequences."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raylingvo import config
from raylingvo.data.records import Records, open_records
from raylingvo.data.sequence_dataset import SequenceDataset
from raylingvo.data.sequences import Column, SequenceSource
from raylingvo.data.token_store import Parse, open_token_store
from raylingvo.data.tokenizers import Tokenizer
from raylingvo.errors import RequestError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSequences(SequenceDataset):
    """Sequences that are made from records, each from its own.

    records: a pattern of `raylingvo.data.records`, such as `multi30k/train.parquet` or `tfrecord:wmt/train@512`.
    """

    records: str

    def check(self) -> None:
        self._open_records().close()
        for tokenizer in self._tokenizers():
            tokenizer.check()

    def open(self) -> SequenceSource:
        return open_token_store(
            self._open_records(),
            self._parser(),
            self._columns(),
            key=self._key(),
            max_bad_records=self.max_bad_records,
        )

    def _open_records(self) -> Records:
        return open_records(self.records, allow_truncated=self.max_bad_records > 0)

    def _key(self) -> str:
        # How examples are batched, and how many bad records are too many, does not change what is in a record.
        settings = dataclasses.replace(self, bucket_bounds=(1,), bucket_batch_sizes=(), packed_lengths=())
        stamps = "".join(tokenizer.fingerprint() for tokenizer in self._tokenizers())
        return config.dump(dataclasses.replace(settings, max_bad_records=0)) + stamps

    def _tokenizers(self) -> Sequence[Tokenizer]:
        return ()

    @abc.abstractmethod
    def _columns(self) -> Sequence[Column]:
        """What an example has."""

    @abc.abstractmethod
    def _parser(self) -> Parse:
        """How records become examples."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextLines(RecordSequences):
    """Text to predict. Batches: `ids`, `labels` and so on.

    field: the column or key of the text; "": the records are lines.
    """

    tokenizer: Tokenizer
    field: str = ""

    def _tokenizers(self) -> Sequence[Tokenizer]:
        return (self.tokenizer,)

    def _columns(self) -> Sequence[Column]:
        return (_target("", self.tokenizer),)

    def _parser(self) -> Parse:
        return lambda records: [self.tokenizer.encode_ragged([_text(record, self.field) for record in records])]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPairs(RecordSequences):
    """A text and what it is to be turned into. Batches: `src_ids`, `src_paddings`, `tgt_ids`, `tgt_labels` and so on.

    source, target: columns or keys of the records; of lines the numbers of their tab-separated fields, from 0.
    target_records: if the targets are in files of their own, in the same order as the sources, these files; `source`
    and `target` are then fields of each, or "" for whole lines.
    """

    source: str
    target: str
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    target_records: str = ""

    def _tokenizers(self) -> Sequence[Tokenizer]:
        return self.source_tokenizer, self.target_tokenizer

    def _columns(self) -> Sequence[Column]:
        return Column(name="src", pad_id=self.source_tokenizer.pad_id), _target("tgt", self.target_tokenizer)

    def _open_records(self) -> Records:
        sources = super()._open_records()
        if not self.target_records:
            return sources
        # A whole line less on one side would pair all that follow with the wrong ones: nothing may be missing.
        return Pairs(sources, open_records(self.target_records), self.source, self.target)

    def _parser(self) -> Parse:
        source, target = ("source", "target") if self.target_records else (self.source, self.target)

        def parse(records: list[Any]) -> list[list[np.ndarray]]:
            return [
                self.source_tokenizer.encode_ragged([_text(record, source) for record in records]),
                self.target_tokenizer.encode_ragged([_text(record, target) for record in records]),
            ]

        return parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenPairs(RecordSequences):
    """Pairs of token ids in tf.Examples, as Tensor2Tensor and MLPerf store them. Batches as of TextPairs.

    source, target: int64 features; their last id is the end of the sentence. pad_id, sos_id: of both.
    """

    source: str = "inputs"
    target: str = "targets"
    pad_id: int = 0
    sos_id: int = 0

    def _columns(self) -> Sequence[Column]:
        return Column(name="src", pad_id=self.pad_id), Column(name="tgt", pad_id=self.pad_id, sos_id=self.sos_id)

    def _parser(self) -> Parse:
        from raylingvo.data.tf_example import Feature, parse_examples

        features = {name: Feature(dtype="int64") for name in (self.source, self.target)}

        def parse(records: list[Any]) -> list[list[np.ndarray]]:
            examples = parse_examples(records, features)
            return [[np.asarray(example[name]) for example in examples] for name in (self.source, self.target)]

        return parse


class Pairs:
    """Two sets of records that belong together by their order, as records {"source": text, "target": text}."""

    def __init__(self, sources: Records, targets: Records, source: str, target: str):
        if len(sources) != len(targets):
            raise RequestError(
                f"sources and targets do not belong together: {len(sources)} records up to "
                f"{_last(sources)}, but {len(targets)} up to {_last(targets)}"
            )
        self._sources, self._targets = sources, targets
        self._source, self._target = source, target
        self.fingerprint = f"{sources.fingerprint}{targets.fingerprint}"
        self.problems = sources.problems + targets.problems

    def __len__(self) -> int:
        return len(self._sources)

    def read(self, indices: np.ndarray) -> list[Any]:
        pairs = zip(self._sources.read(indices), self._targets.read(indices), strict=True)
        return [{"source": _text(a, self._source), "target": _text(b, self._target)} for a, b in pairs]

    def where(self, index: int) -> str:
        return f"{self._sources.where(index)} or {self._targets.where(index)}"

    def close(self) -> None:
        self._sources.close()
        self._targets.close()


def _last(records: Records) -> str:
    return records.where(len(records) - 1) if len(records) else "nothing"


def _target(name: str, tokenizer: Tokenizer) -> Column:
    return Column(name=name, pad_id=tokenizer.pad_id, sos_id=tokenizer.sos_id)


def _text(record: Any, field: str) -> str:
    """The text of a field. Raises ValueError, which says what is wrong with the record."""
    if isinstance(record, Mapping):
        if field not in record:
            raise ValueError(f"there is no field {field!r}; it has {', '.join(record)}")
        value = record[field]
    elif field:
        if not field.isdigit():
            raise ValueError(f"a line has no field {field!r}; name its number, from 0")
        parts = record.split(b"\t")
        if int(field) >= len(parts):
            raise ValueError(f"there is no tab-separated field {field}; it has {len(parts)}")
        value = parts[int(field)]
    else:
        value = record
    if isinstance(value, bytes):
        value = value.decode()  # UnicodeDecodeError is a ValueError
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} is not text (got {value!r})")
    return value
