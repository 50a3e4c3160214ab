"""Lingvo's tf.Examples for translation: pairs that were encoded by word pieces, and pairs of pairs for XEnDec."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raylingvo.data import fields
from raylingvo.data.sequences import Column
from raylingvo.data.text import EncodedPairs, RecordSequences, pair_columns
from raylingvo.data.token_store import Parse
from raylingvo.data.tokenizers import Tokenizer
from raylingvo.data.tokenizers.wpm import WORD_START

_SPECIALS = (b"<s>", b"</s>", b"<S>", b"</S>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WpmExamples(EncodedPairs):
    """Sentence pairs in tf.Examples, as Lingvo's word-piece encoders write them (NmtInput). Batches as of TextPairs.

    A record has source_id, target_id and target_label, i64[length], with </s> last, but <s> first and no </s> in
    target_id; source_padding and target_padding, f32[length], 1.0 at ids that do not count; target_weight, f32[length],
    1.0 at all that do, for tokens have no weights of their own here; and source_word and target_word, the pieces.

    from_words: for ids of a vocabulary that is not at hand. The text that the pieces spell is encoded again by the
    tokenizers; the ids are not looked at. Otherwise the ids must be those of the tokenizers, and the text is what they
    decode to.
    """

    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    from_words: bool = False

    def _tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        return self.source_tokenizer, self.target_tokenizer

    def _parser(self) -> Parse:
        return super()._parser() if self.from_words else self._ids

    def _ids(self, records: list[Any]) -> list[list[np.ndarray]]:
        pair = _IdPair("", *self._tokenizers())
        return pair.columns(fields.examples(records, pair.features))

    def _texts(self, records: list[Any]) -> tuple[list[str], list[str]]:
        from raylingvo.data.tf_example import Feature

        if not self.from_words:
            source, target = map(_decoded, self._tokenizers(), self._ids(records))
            return source, target
        words = {"source_word": Feature(dtype="bytes"), "target_word": Feature(dtype="bytes")}
        examples = fields.examples(records, words)
        source, target = ([_spelt(example[name]) for example in examples] for name in words)
        return source, target


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoubleExamples(RecordSequences):
    """Two sentence pairs in each tf.Example, for XEnDec (Lingvo: NmtDoubleInput).

    Batches: those of TextPairs, and `other_src_ids`, `other_src_paddings`, `other_tgt_ids`, `other_tgt_labels`,
    `other_tgt_paddings`. A record has the features of WpmExamples, and once more those with `mono_` before their names:
    the other pair, which may be one text of the target language twice. All ids are those of one tokenizer.

    Differs from Lingvo: an example goes into a bucket by the longest of all four, not of the first two; the other pair
    of a row is its own, not that of the row before; noise on `other_src` is not part of the data.
    """

    tokenizer: Tokenizer

    def _tokenizers(self) -> Sequence[Tokenizer]:
        return (self.tokenizer,)

    def _columns(self) -> Sequence[Column]:
        pair = pair_columns(self.tokenizer, self.tokenizer)
        return *pair, *(dataclasses.replace(column, name=f"other_{column.name}") for column in pair)

    def _parser(self) -> Parse:
        pairs = [_IdPair(prefix, self.tokenizer, self.tokenizer) for prefix in ("", "mono_")]
        features = {name: feature for pair in pairs for name, feature in pair.features.items()}

        def parse(records: list[Any]) -> list[list[np.ndarray]]:
            examples = fields.examples(records, features)
            return [column for pair in pairs for column in pair.columns(examples)]

        return parse


class _IdPair:
    """The features of one pair, all of whose names start with a prefix."""

    def __init__(self, prefix: str, source: Tokenizer, target: Tokenizer):
        from raylingvo.data.tf_example import Feature

        self._prefix, self._source, self._target = prefix, source, target
        numbers, ids = ("source_padding", "target_padding", "target_weight"), ("source_id", "target_id", "target_label")
        self.features = {f"{prefix}{name}": Feature(dtype="int64") for name in ids}
        self.features |= {f"{prefix}{name}": Feature(dtype="float32", default=()) for name in numbers}

    def columns(self, examples: Sequence[Mapping[str, Any]]) -> list[list[np.ndarray]]:
        """Sources and labels. Raises ValueError if one is not as it should be."""
        sources = self._counting("source_id", "source_padding", examples)
        labels = self._counting("target_label", "target_padding", examples)
        ids = self._counting("target_id", "target_padding", examples)
        weights = self._counting("target_weight", "target_padding", examples)
        self._check_range("source_id", sources, self._source)
        self._check_range("target_label", labels, self._target)
        self._check_shifted(ids, labels)
        weight_T = np.concatenate(weights)
        if (weight_T != 1.0).any():
            raise ValueError(f"{self._prefix}target_weight must be 1.0 (got {weight_T[weight_T != 1.0][0]})")
        return [sources, labels]

    def _counting(self, name: str, padding: str, examples: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        """The values at positions that are not padded; a feature that is not there says nothing."""
        values = [example[f"{self._prefix}{name}"] for example in examples]
        paddings = [example[f"{self._prefix}{padding}"] for example in examples]
        if not np.concatenate(paddings).any():
            return values
        for i, (value_T, padding_T) in enumerate(zip(values, paddings, strict=True)):
            if len(value_T) and padding_T.any():
                if len(value_T) != len(padding_T):
                    raise ValueError(
                        f"{self._prefix}{name} and {padding} must be equally many "
                        f"(got {len(value_T)} and {len(padding_T)})"
                    )
                values[i] = value_T[padding_T == 0.0]
        return values

    def _check_range(self, name: str, ids: Sequence[np.ndarray], tokenizer: Tokenizer) -> None:
        id_T, size = np.concatenate(ids), tokenizer.vocab_size
        wrong = id_T[(id_T < 0) | (id_T >= size)]
        if wrong.size:
            raise ValueError(f"{self._prefix}{name} must be in [0, {size}), the vocabulary (got {wrong[0]})")

    def _check_shifted(self, ids: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> None:
        length_B = np.array([len(row) for row in labels])
        id_T, shifted_T = np.concatenate(ids), np.roll(np.concatenate(labels), 1)
        shifted_T[(np.cumsum(length_B) - length_B)[length_B > 0]] = self._target.sos_id
        if not np.array_equal(id_T, shifted_T):
            raise ValueError(
                f"{self._prefix}target_id must be <s> (id {self._target.sos_id}) and target_label without its last"
            )


def _decoded(tokenizer: Tokenizer, rows: Sequence[np.ndarray]) -> list[str]:
    """The texts of labels, without the end of the sentence."""
    ended = [row[:-1] if len(row) and row[-1] == tokenizer.eos_id else row for row in rows]
    return [text for row in ended for text in tokenizer.decode(row[None], [len(row)])]


def _spelt(pieces: Sequence[bytes]) -> str:
    """The text of word pieces, or of words."""
    text = [piece.decode() for piece in pieces if piece not in _SPECIALS]
    joined = "".join(text)
    return joined.replace(WORD_START, " ").strip(" ") if WORD_START in joined else " ".join(text)
