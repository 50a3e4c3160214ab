"""Words, or other tokens between delimiters, by a vocabulary file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from raylingvo.data.tokenizers import _files
from raylingvo.data.tokenizers.base import Text, Tokenizer, to_bytes, to_text
from raylingvo.data.tokenizers.vocab import Vocab
from raylingvo.errors import RequestError


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabFileTokenizer(Tokenizer):
    """Looks tokens up in a file with a line for each (the rules: `Vocab`). One of the two files must be given.

    token_vocab_filepath: to encode, and to decode. tokens_delimiter: any of its characters separates tokens, and tokens
    of white space are dropped; "" makes each byte a token. When decoding it is put between tokens.
    load_token_ids_from_vocab: ids are the file's second column, otherwise they count its lines, without empty ones.
    Lingvo decodes by lines even then; here what was encoded is decoded by the same ids.

    ngram_vocab_filepath: only to decode, by lines; ngram_separator is put between tokens.

    A sentence that is cut loses </s>.
    """

    token_vocab_filepath: str | None = None
    ngram_vocab_filepath: str | None = None
    tokens_delimiter: str = " "
    ngram_separator: str = ""
    load_token_ids_from_vocab: bool = True

    def __post_init__(self) -> None:
        if (self.token_vocab_filepath is None) == (self.ngram_vocab_filepath is None):
            raise ValueError(
                "one of token_vocab_filepath and ngram_vocab_filepath must be given "
                f"(got {self.token_vocab_filepath!r} and {self.ngram_vocab_filepath!r})"
            )

    @property
    def vocab_size(self) -> int:
        return self._vocab.size

    @property
    def sos_id(self) -> int:
        return self._vocab.sos_id

    @property
    def eos_id(self) -> int:
        return self._vocab.eos_id

    @property
    def unk_id(self) -> int:
        return self._vocab.unk_id

    @property
    def _vocab(self) -> Vocab:
        by_column = self.load_token_ids_from_vocab and self.token_vocab_filepath is not None
        return _files.load(self._paths()[0], _parse, by_column)

    def _paths(self) -> Sequence[str]:
        return (self.token_vocab_filepath or self.ngram_vocab_filepath or "",)

    def _tokens(self, strings: Sequence[Text], seed_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.token_vocab_filepath is None:
            raise RequestError(f"{self.ngram_vocab_filepath}: n-grams can only be decoded; give token_vocab_filepath")
        split = splitter(self.tokens_delimiter)
        vocab = self._vocab
        get, unk = vocab.ids.get, vocab.unk_id
        flat: list[int] = []
        stops = []
        for string in strings:
            flat += [get(token, unk) for token in split(to_bytes(string))]
            stops.append(len(flat))
        return np.array(flat, np.int32), np.diff(np.array(stops, np.int64), prepend=0)

    def _decode(self, rows: list[list[int]]) -> list[str]:
        separator = self.ngram_separator if self.token_vocab_filepath is None else self.tokens_delimiter
        join, token_of = separator.encode().join, self._vocab.token_of
        return [to_text(join(map(token_of, row))) for row in rows]


def splitter(delimiter: str) -> Callable[[bytes], list[bytes]]:
    """How a string is split at each of the characters of `delimiter`; without one, into its bytes.

    What is empty or white space is dropped, except of bytes.
    """
    if not delimiter:
        return lambda string: [string[i : i + 1] for i in range(len(string))]
    if len(delimiter) == 1:
        one = delimiter.encode()
        return lambda string: [part for part in string.split(one) if part and not part.isspace()]
    split = re.compile(b"|".join(re.escape(c.encode()) for c in delimiter)).split
    return lambda string: [part for part in split(string) if part and not part.isspace()]


def _parse(content: bytes, name: str, load_token_ids: bool) -> Vocab:
    return Vocab(_files.lines(content), name, load_token_ids)
