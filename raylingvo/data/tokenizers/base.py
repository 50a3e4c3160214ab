"""What a tokenizer is: a frozen description that turns text into padded or ragged ids, and ids into text."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from raylingvo.data.tokenizers import _files
from raylingvo.data.tokenizers._random import string_seeds

# N strings, L positions.

Text = str | bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer(abc.ABC):
    """How text becomes ids and ids become text, as configuration. Files are read when they are first needed.

    The conventions are Lingvo's: a sentence y1 y2 .. is fed to a model as `ids` <s> y1 y2 .., and predicted as `labels`
    y1 y2 .. </s>; what follows is padding, which has an id too (`pad_id`). Text is UTF-8; other bytes are unknown.

    append_eos: whether </s> is a label that counts. pad_to_max_length: whether `encode` gives `max_length` positions
    whatever the texts; if not, as many as the longest needs.
    """

    append_eos: bool = True
    pad_to_max_length: bool = True

    # Whether </s> takes the last position of a sentence that is cut, or is cut off with the rest.
    _keeps_eos: ClassVar[bool] = False
    # Whether the longest sentence needs a position for </s> also if that does not count.
    _leaves_room_for_eos: ClassVar[bool] = True

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """The number of ids: all of them are below."""

    @property
    @abc.abstractmethod
    def sos_id(self) -> int:
        """The id of <s>, which starts a sentence."""

    @property
    @abc.abstractmethod
    def eos_id(self) -> int:
        """The id of </s>, which ends a sentence."""

    @property
    @abc.abstractmethod
    def unk_id(self) -> int:
        """The id of <unk>, which stands for what the vocabulary does not have."""

    @property
    def pad_id(self) -> int:
        """The id behind the end of a sentence."""
        return self.eos_id

    @property
    def is_random(self) -> bool:
        """Whether ids are drawn at random: `encode` gives others for another seed."""
        return False

    def check(self) -> None:
        """Raises RequestError if a file is missing. Cheap: the files are not read."""
        for path in self._paths():
            _files.find_one(path)

    def fingerprint(self) -> str:
        """A text that changes when a file, or the library behind it, does. Raises RequestError if a file is missing."""
        files = map(_files.find_one, self._paths())
        return "".join(f"{file.path}:{file.size}:{file.version};" for file in files)

    def encode(
        self, strings: Sequence[Text], max_length: int, *, seed: int | Sequence[int] | np.ndarray = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids i32[N, L], labels i32[N, L], paddings f32[N, L]) of N strings, L = max_length.

        paddings: 0.0 where a label counts, else 1.0. Longer sentences are cut. seed: see `encode_flat`.
        Raises ValueError if max_length < 1, RequestError if a file is missing or not as it should be.
        """
        if max_length < 1:
            raise ValueError(f"max_length must be >= 1 (got {max_length})")
        tokens, length_N = self._checked_tokens(strings, seed)
        kept_N = np.minimum(length_N, max_length - self._keeps_eos)
        width = max_length
        if not self.pad_to_max_length:
            room = self.append_eos or self._leaves_room_for_eos
            width = min(int(np.max(kept_N, initial=0)) + room, max_length) if len(length_N) else 0
        position_L = np.arange(width)
        kept_Nx1 = kept_N[:, None]
        labels_NxL = np.full((len(length_N), width), self.pad_id, np.int32)
        labels_NxL[position_L < kept_Nx1] = _cut(tokens, length_N, kept_N)
        if self.append_eos and self.pad_id != self.eos_id:
            labels_NxL[position_L == kept_Nx1] = self.eos_id
        ids_NxL = np.empty_like(labels_NxL)
        ids_NxL[:, :1] = self.sos_id
        ids_NxL[:, 1:] = labels_NxL[:, :-1]
        paddings_NxL = (position_L >= kept_Nx1 + self.append_eos).astype(np.float32)
        return ids_NxL, labels_NxL, paddings_NxL

    def encode_ragged(self, strings: Sequence[Text], *, seed: int | Sequence[int] | np.ndarray = 0) -> list[np.ndarray]:
        """The labels of each string, i32[T]: with </s> if append_eos, whole. They are views of one array.

        seed: see `encode_flat`.
        """
        flat, length_N = self.encode_flat(strings, seed=seed)
        stops = np.cumsum(length_N).tolist()
        return [flat[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]

    def encode_flat(
        self, strings: Sequence[Text], *, seed: int | Sequence[int] | np.ndarray = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """The labels of all strings one behind the other, i32[sum], and how many are of each, i64[N].

        seed: where ids are drawn at random (`merge_prob`, `nbest_size`), the draws of a string are a function of its
        seed: one number for each string, or one for all from which, with its position, that of each is made.
        """
        tokens, length_N = self._checked_tokens(strings, seed)
        if not self.append_eos:
            return tokens, length_N
        stop_N = np.cumsum(length_N + 1)
        flat = np.empty(len(tokens) + len(length_N), np.int32)
        is_token = np.ones(len(flat), bool)
        is_token[stop_N - 1] = False
        flat[is_token] = tokens
        flat[stop_N - 1] = self.eos_id
        return flat, length_N + 1

    def decode(self, ids: Any, lens: Any) -> list[str]:
        """The texts of ids[i, :lens[i]], ids i32[N, L], lens i32[N]. A negative length counts as 0.

        Special ids are written as they stand in the vocabulary, and ids it does not have as its <unk>, unless the
        tokenizer says otherwise. Raises ValueError if the shapes do not agree, or a length exceeds L.
        """
        ids_NxL, len_N = np.asarray(ids), np.asarray(lens)
        if ids_NxL.ndim != 2 or len_N.shape != ids_NxL.shape[:1]:
            raise ValueError(f"ids must be [N, L] and lens [N] (got {[*ids_NxL.shape]} and {[*len_N.shape]})")
        if np.max(len_N, initial=0) > ids_NxL.shape[1]:
            raise ValueError(f"lens must be <= {ids_NxL.shape[1]}, the width of ids (got {len_N.max()})")
        return self._decode([row[: max(n, 0)].tolist() for row, n in zip(ids_NxL, len_N.tolist(), strict=True)])

    def pieces(self, ids: Any) -> list[str]:
        """The text of each id, i32[L], by itself, as the vocabulary has it."""
        return self._pieces_of(np.asarray(ids).tolist())

    def _pieces_of(self, row: list[int]) -> list[str]:
        return self._decode([[id_] for id_ in row])

    def _paths(self) -> Sequence[str]:
        """The files."""
        return ()

    @abc.abstractmethod
    def _tokens(self, strings: Sequence[Text], seed_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all strings, i32[sum], writable, without <s> and </s>, and how many are of each, i64[N]."""

    @abc.abstractmethod
    def _decode(self, rows: list[list[int]]) -> list[str]:
        """The text of each row of ids, which may be any integers."""

    def _checked_tokens(
        self, strings: Sequence[Text], seed: int | Sequence[int] | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(strings, str | bytes):
            raise ValueError(f"strings must be a sequence of texts (got one: {strings!r})")
        return self._tokens(strings, string_seeds(seed, len(strings)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerWithGivenIds(Tokenizer):
    """A tokenizer whose special ids are part of its configuration, because its files need not say which they are."""

    target_unk_id: int = 0
    target_sos_id: int = 1
    target_eos_id: int = 2

    @property
    def unk_id(self) -> int:
        return self.target_unk_id

    @property
    def sos_id(self) -> int:
        return self.target_sos_id

    @property
    def eos_id(self) -> int:
        return self.target_eos_id


def to_bytes(text: Text) -> bytes:
    """UTF-8. Lone surrogates, which no encoder of UTF-8 should let pass, become bytes that are not UTF-8."""
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def to_text(content: bytes) -> str:
    """Text of bytes; what is not UTF-8 becomes U+FFFD."""
    return content.decode("utf-8", "replace")


def flatten(rows: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """What `_tokens` gives, of the bytes of an i32 array for each string."""
    length_N = np.fromiter(map(len, rows), np.int64, len(rows)) // 4
    return np.frombuffer(bytearray().join(rows), np.int32), length_N


def _cut(tokens: np.ndarray, length_N: np.ndarray, kept_N: np.ndarray) -> np.ndarray:
    """The first kept_N[i] <= length_N[i] tokens of each string."""
    if np.array_equal(length_N, kept_N):
        return tokens
    position = np.arange(len(tokens)) - np.repeat(np.cumsum(length_N) - length_N, length_N)
    return tokens[position < np.repeat(kept_N, length_N)]
