"""Byte-pair encoding by a table: each word of the text has its ids in a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from raylingvo.data.tokenizers import _files
from raylingvo.data.tokenizers.base import Text, TokenizerWithGivenIds, flatten, to_bytes, to_text
from raylingvo.data.tokenizers.vocab_file import splitter
from raylingvo.errors import RequestError


@dataclasses.dataclass(frozen=True, kw_only=True)
class BpeTokenizer(TokenizerWithGivenIds):
    """Words, separated by spaces, become the ids that a file lists for them; a word that it does not list has none.

    words_to_ids_filepath: to encode: lines `word id,id,..`; of a word that occurs again, the last counts.
    codes_filepath: to decode: a line for each id, from 0; the piece ends at the first space. A piece with `@@` loses
    the first one and joins the next piece; after any other comes a space, so texts end in one.

    A sentence that is cut loses </s>. Lingvo does not bound-check ids, and always pads to max_length.
    """

    codes_filepath: str | None = None
    words_to_ids_filepath: str | None = None

    def __post_init__(self) -> None:
        if self.codes_filepath is None and self.words_to_ids_filepath is None:
            raise ValueError("codes_filepath or words_to_ids_filepath must be given (got None)")

    @property
    def vocab_size(self) -> int:
        if self.codes_filepath is not None:
            return len(self._pieces)
        rows = map(_ids, self._words.values())
        return 1 + max(self.unk_id, self.sos_id, self.eos_id, *(int(row.max()) for row in rows if len(row)))

    @property
    def _words(self) -> Mapping[bytes, bytes]:
        if self.words_to_ids_filepath is None:
            raise RequestError(f"{self.codes_filepath} can only decode; give words_to_ids_filepath to encode")
        return _files.load(self.words_to_ids_filepath, _parse_words)

    @property
    def _pieces(self) -> Sequence[str]:
        if self.codes_filepath is None:
            raise RequestError(f"{self.words_to_ids_filepath} can only encode; give codes_filepath to decode")
        return _files.load(self.codes_filepath, _parse_codes)

    def _paths(self) -> Sequence[str]:
        return [path for path in (self.codes_filepath, self.words_to_ids_filepath) if path is not None]

    def _tokens(self, strings: Sequence[Text], seed_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        split, words = splitter(" "), self._words
        return flatten([b"".join([words.get(word, b"") for word in split(to_bytes(string))]) for string in strings])

    def _decode(self, rows: list[list[int]]) -> list[str]:
        pieces = self._pieces
        return ["".join(pieces[i] if 0 <= i < len(pieces) else "<unk> " for i in row) for row in rows]


def _ids(row: bytes) -> np.ndarray:
    return np.frombuffer(row, np.int32)


def _parse_words(content: bytes, name: str) -> dict[bytes, bytes]:
    """Word -> its ids, as the bytes of an i32 array."""
    words = {}
    for number, line in _files.lines(content):
        word, _, rest = line.partition(b" ")
        column = rest.partition(b" ")[0]
        try:
            words[word] = np.array([int(i) for i in column.split(b",")], np.int32).tobytes()
        except (ValueError, OverflowError):
            raise RequestError(f"{name}:{number} must be `word id,id,..` (got {to_text(line)!r})") from None
    return words


def _parse_codes(content: bytes, name: str) -> list[str]:
    """The text that each id stands for."""
    pieces = [to_text(line.partition(b" ")[0]) for _, line in _files.lines(content)]
    return [piece.replace("@@", "", 1) if "@@" in piece else f"{piece} " for piece in pieces]
