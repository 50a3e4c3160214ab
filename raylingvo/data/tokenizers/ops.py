"""Lingvo's text ops as functions: their names, attributes and defaults.

The tokenizers are the way to use them; these are for code, and recorded values, that were written for the ops.
Where an op gives three arrays they are token_ids, target_ids i32[N, L] and paddings f32[N, L]; see `Tokenizer.encode`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raylingvo.data.tokenizers.ascii import AsciiTokenizer
from raylingvo.data.tokenizers.base import Text, to_bytes, to_text
from raylingvo.data.tokenizers.bpe import BpeTokenizer
from raylingvo.data.tokenizers.t2t_subword import T2tSubwordTokenizer, lingvo_text
from raylingvo.data.tokenizers.vocab import Vocab
from raylingvo.data.tokenizers.vocab_file import VocabFileTokenizer

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def ascii_to_token_id(
    labels: Sequence[Text], *, append_eos: bool = True, maxlen: int = 300, pad_to_maxlen: bool = True
) -> Arrays:
    """The characters of strings; see `AsciiTokenizer`."""
    return AsciiTokenizer(append_eos=append_eos, pad_to_max_length=pad_to_maxlen).encode(labels, maxlen)


def id_to_ascii(token_ids: Any, seq_lengths: Any) -> list[str]:
    """The texts of character ids."""
    return AsciiTokenizer().decode(token_ids, seq_lengths)


def str_to_vocab_tokens(
    labels: Sequence[Text],
    *,
    vocab_filepath: str,
    append_eos: bool = True,
    maxlen: int = 300,
    pad_to_maxlen: bool = True,
    load_token_ids_from_vocab: bool = True,
    delimiter: str = " ",
) -> Arrays:
    """The tokens of strings; see `VocabFileTokenizer`."""
    tokenizer = VocabFileTokenizer(
        token_vocab_filepath=vocab_filepath,
        append_eos=append_eos,
        pad_to_max_length=pad_to_maxlen,
        load_token_ids_from_vocab=load_token_ids_from_vocab,
        tokens_delimiter=delimiter,
    )
    return tokenizer.encode(labels, maxlen)


def ngram_id_to_token(
    token_ids: Any, seq_lengths: Any, *, ngram_vocab_filepath: str, ngram_separator: str = ""
) -> list[str]:
    """The texts of ids that count the lines of a vocabulary, whatever is in its second column."""
    tokenizer = VocabFileTokenizer(ngram_vocab_filepath=ngram_vocab_filepath, ngram_separator=ngram_separator)
    return tokenizer.decode(token_ids, seq_lengths)


def bpe_words_to_ids(
    labels: Sequence[Text],
    *,
    tokenization_filepath: str,
    append_eos: bool = True,
    maxlen: int = 300,
    sos_id: int = 1,
    eos_id: int = 2,
) -> Arrays:
    """The codes of words; see `BpeTokenizer`."""
    tokenizer = BpeTokenizer(
        words_to_ids_filepath=tokenization_filepath,
        append_eos=append_eos,
        target_sos_id=sos_id,
        target_eos_id=eos_id,
    )
    return tokenizer.encode(labels, maxlen)


def bpe_ids_to_words(token_ids: Any, seq_lengths: Any, *, vocab_filepath: str) -> list[str]:
    """The texts of codes."""
    return BpeTokenizer(codes_filepath=vocab_filepath).decode(token_ids, seq_lengths)


def ml_perf_subword_id_to_string(token_ids: Any, seq_lengths: Any, *, vocab_filepath: str) -> list[str]:
    """The texts of Tensor2Tensor's subwords. `T2tSubwordTokenizer.decode` also undoes their escapes."""
    return _LingvoSubwords(vocab_filepath=vocab_filepath).decode(token_ids, seq_lengths)


def vocab_token_to_id(
    tokens: Text | Sequence[Text], *, vocab: Sequence[Text], load_token_ids_from_vocab: bool = False
) -> np.ndarray:
    """The ids of a token, i32[], or of several, i32[N]. vocab: the lines of a file; see `Vocab`."""
    table = _vocab(vocab, load_token_ids_from_vocab)
    if isinstance(tokens, str | bytes):
        return np.array(table.id_of(to_bytes(tokens)), np.int32)
    return np.array([table.id_of(to_bytes(token)) for token in tokens], np.int32)


def vocab_id_to_token(ids: Any, *, vocab: Sequence[Text], load_token_ids_from_vocab: bool = False) -> Any:
    """The token of an id, or the list of those of several."""
    table = _vocab(vocab, load_token_ids_from_vocab)
    given = np.asarray(ids)
    tokens = [to_text(table.token_of(id_)) for id_ in given.reshape(-1).tolist()]
    return tokens if given.ndim else tokens[0]


def token_in_vocab(
    tokens: Text | Sequence[Text], *, vocab: Sequence[Text], load_token_ids_from_vocab: bool = False
) -> np.ndarray:
    """Whether a token, or each of several, is in the vocabulary: bool[] or bool[N]."""
    table = _vocab(vocab, load_token_ids_from_vocab)
    if isinstance(tokens, str | bytes):
        return np.array(to_bytes(tokens) in table.ids)
    return np.array([to_bytes(token) in table.ids for token in tokens], bool)


def _vocab(lines: Sequence[Text], load_token_ids: bool) -> Vocab:
    numbered = ((number, to_bytes(line)) for number, line in enumerate(lines, 1))
    return Vocab(((number, line) for number, line in numbered if line), "vocab", load_token_ids)


class _LingvoSubwords(T2tSubwordTokenizer):
    def _decode(self, rows: list[list[int]]) -> list[str]:
        return [lingvo_text(self.joined(row)) for row in rows]
