"""A tokenizer as one writes it on a command line: TYPE:FILE."""

from __future__ import annotations

from collections.abc import Callable

from raylingvo.data import tokenizers
from raylingvo.data.tokenizers import Tokenizer
from raylingvo.errors import RequestError

_OF_FILE: dict[str, Callable[[str], Tokenizer]] = {
    "sentencepiece": lambda file: tokenizers.SentencePieceTokenizer(spm_model=file),
    "t2t": lambda file: tokenizers.T2tSubwordTokenizer(vocab_filepath=file),
    "wpm": lambda file: tokenizers.WpmTokenizer(vocab_filepath=file),
    "words": lambda file: tokenizers.VocabFileTokenizer(token_vocab_filepath=file),
}


def tokenizer_from_text(text: str) -> Tokenizer:
    """`wpm:FILE`, `sentencepiece:FILE`, `t2t:FILE`, `words:FILE` or `ascii`; files are relative to RAYLINGVO_DATA.

    Raises RequestError for any other type, and if the file is missing.
    """
    kind, _, file = text.partition(":")
    if kind == "ascii" and not file:
        return tokenizers.AsciiTokenizer()
    if kind not in _OF_FILE or not file:
        known = ", ".join(f"{name}:FILE" for name in _OF_FILE)
        raise RequestError(f"--tokenizer must be {known} or ascii (got {text!r})")
    tokenizer = _OF_FILE[kind](file)
    tokenizer.check()
    return tokenizer
