"""Tokenizers: text to ids and back, by Lingvo's conventions."""

from raylingvo.data.tokenizers.ascii import AsciiTokenizer
from raylingvo.data.tokenizers.base import Tokenizer
from raylingvo.data.tokenizers.bpe import BpeTokenizer
from raylingvo.data.tokenizers.characters import CharacterTokenizer
from raylingvo.data.tokenizers.integers import IntegerTokenizer
from raylingvo.data.tokenizers.ops import (
    ascii_to_token_id,
    bpe_ids_to_words,
    bpe_words_to_ids,
    id_to_ascii,
    ml_perf_subword_id_to_string,
    ngram_id_to_token,
    str_to_vocab_tokens,
    token_in_vocab,
    vocab_id_to_token,
    vocab_token_to_id,
)
from raylingvo.data.tokenizers.sentence_piece import SentencePieceTokenizer
from raylingvo.data.tokenizers.t2t_subword import T2tSubwordTokenizer
from raylingvo.data.tokenizers.vocab_file import VocabFileTokenizer
from raylingvo.data.tokenizers.wpm import WpmTokenizer

__all__ = [
    "AsciiTokenizer",
    "BpeTokenizer",
    "CharacterTokenizer",
    "IntegerTokenizer",
    "SentencePieceTokenizer",
    "T2tSubwordTokenizer",
    "Tokenizer",
    "VocabFileTokenizer",
    "WpmTokenizer",
    "ascii_to_token_id",
    "bpe_ids_to_words",
    "bpe_words_to_ids",
    "id_to_ascii",
    "ml_perf_subword_id_to_string",
    "ngram_id_to_token",
    "str_to_vocab_tokens",
    "token_in_vocab",
    "vocab_id_to_token",
    "vocab_token_to_id",
]
