"""Datasets of text, and of token ids made elsewhere, as sequences."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

import raylingvo
from raylingvo import config
from raylingvo.data import fields
from raylingvo.data.batches import WHOLE, Batches, Shard
from raylingvo.data.records import Records, files_fingerprint, open_records
from raylingvo.data.sequence_dataset import SequenceDataset
from raylingvo.data.sequences import Column, SequenceSource
from raylingvo.data.texts import WithTexts
from raylingvo.data.token_store import Parse, open_token_store
from raylingvo.data.tokenizers import Tokenizer
from raylingvo.errors import RequestError

# Of pairs, in the order source, target.
_TEXT_FIELDS = ("src_text", "tgt_text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSequences(SequenceDataset):
    """Sequences that are made from records, each from its own.

    records: a pattern of `raylingvo.data.records`, such as `multi30k/train.parquet` or `tfrecord:wmt/train@512`.
    max_bad_records: so many damaged records are left out and counted, one more is an error.

    What records become is made once and kept in the user's cache, so nothing of it may be drawn at random.
    """

    records: str
    max_bad_records: int = 0

    # Of `_parser`: a class whose parser makes other tokens of the same records than before counts it up.
    _VERSION: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_bad_records < 0:
            raise ValueError(f"max_bad_records must be >= 0 (got {self.max_bad_records})")
        for tokenizer in self._tokenizers():
            if tokenizer.is_random:
                raise ValueError(
                    "ids are made once and kept, so a tokenizer must draw nothing at random: "
                    f"set nbest_size=0 or merge_prob=1.0 (got {tokenizer})"
                )

    def check(self) -> None:
        self._files()
        for tokenizer in self._tokenizers():
            tokenizer.check()

    def open(self) -> SequenceSource:
        return open_token_store(
            self._key, self._open_records, self._parser(), self._columns(), max_bad_records=self.max_bad_records
        )

    def _open_records(self) -> Records:
        return open_records(self.records, allow_truncated=self.max_bad_records > 0)

    def _with_texts(self, batches: Batches, texts: Callable[[list[Any]], Mapping[str, Sequence[str]]]) -> Batches:
        """Batches to evaluate, with fields of strings: those of `texts`, of the records. Packed ones stay as they are.

        They are read again: ids do not say what a tokenizer does not know, or has normalised.
        """
        if self.packed_lengths:
            return batches
        records = self._open_records()
        return WithTexts(batches, lambda record_ids: texts(records.read(record_ids)))

    def _files(self) -> str:
        """The state of the files of records. Raises RequestError if one is missing."""
        return files_fingerprint(self.records)

    def _key(self) -> str:
        """What the tokens depend on."""
        # How examples are batched, and how many bad records are too many, does not change what is in a record.
        settings = dataclasses.replace(
            self, bucket_bounds=(1,), bucket_batch_sizes=(), packed_lengths=(), max_bad_records=0
        )
        kind = type(self)
        parts = [
            raylingvo.__version__,
            f"{kind.__module__}.{kind.__qualname__} {self._VERSION}",
            config.dump(settings),
            self._files(),
            *(tokenizer.fingerprint() for tokenizer in self._tokenizers()),
        ]
        return "\0".join(parts)

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
        return lambda records: [self.tokenizer.encode_ragged([fields.text(record, self.field) for record in records])]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedPairs(RecordSequences):
    """A text and what it is to be turned into, each encoded by a tokenizer.

    Batches: `src_ids`, `src_paddings`, `tgt_ids`, `tgt_labels` and so on. Those to evaluate or decode, unless they are
    packed, also have the texts themselves, `src_text` and `tgt_text`.
    """

    def eval_batches(self, batch_size: int, max_examples: int | None = None, shard: Shard = WHOLE) -> Batches:
        batches = super().eval_batches(batch_size, max_examples, shard)
        return self._with_texts(batches, lambda records: dict(zip(_TEXT_FIELDS, self._texts(records), strict=True)))

    @abc.abstractmethod
    def _tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        """Of sources and of targets."""

    @abc.abstractmethod
    def _texts(self, records: list[Any]) -> tuple[Sequence[str], Sequence[str]]:
        """The sources and the targets of some records, as `_open_records` gives them."""

    def _columns(self) -> Sequence[Column]:
        return pair_columns(*self._tokenizers())

    def _parser(self) -> Parse:
        def parse(records: list[Any]) -> list[list[np.ndarray]]:
            sides = zip(self._tokenizers(), self._texts(records), strict=True)
            return [tokenizer.encode_ragged(texts) for tokenizer, texts in sides]

        return parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPairs(EncodedPairs):
    """A text and what it is to be turned into, in two fields of a record or in two files.

    source, target: columns or keys of the records; of lines the numbers of their tab-separated fields, from 0.
    target_records: if the targets are in files of their own, in the same order as the sources, these files; `source`
    and `target` are then fields of each, or "" for whole lines.
    """

    source: str
    target: str
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    target_records: str = ""

    def _tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        return self.source_tokenizer, self.target_tokenizer

    def _open_records(self) -> Records:
        sources = super()._open_records()
        if not self.target_records:
            return sources
        # A whole line less on one side would pair all that follow with the wrong ones: nothing may be missing.
        return Pairs(sources, open_records(self.target_records), self.source, self.target)

    def _files(self) -> str:
        return super()._files() + (files_fingerprint(self.target_records) if self.target_records else "")

    def _texts(self, records: list[Any]) -> tuple[list[str], list[str]]:
        source, target = ("source", "target") if self.target_records else (self.source, self.target)
        return [fields.text(record, source) for record in records], [fields.text(record, target) for record in records]


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
        from raylingvo.data.tf_example import Feature

        features = {name: Feature(dtype="int64") for name in (self.source, self.target)}

        def parse(records: list[Any]) -> list[list[np.ndarray]]:
            examples = fields.examples(records, features)
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
        return [{"source": fields.text(a, self._source), "target": fields.text(b, self._target)} for a, b in pairs]

    def where(self, index: int) -> str:
        return f"{self._sources.where(index)} or {self._targets.where(index)}"

    def close(self) -> None:
        self._sources.close()
        self._targets.close()


def pair_columns(source: Tokenizer, target: Tokenizer) -> tuple[Column, Column]:
    """The columns `src` and `tgt` of text that these tokenizers encode."""
    return Column(name="src", pad_id=source.pad_id), _target("tgt", target)


def _last(records: Records) -> str:
    return records.where(len(records) - 1) if len(records) else "nothing"


def _target(name: str, tokenizer: Tokenizer) -> Column:
    return Column(name=name, pad_id=tokenizer.pad_id, sos_id=tokenizer.sos_id)
