"""What words were turned into, for those seen before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")

# Multi30k has 25,000 different words, and a word with its ids takes about 200 bytes.
_MAX_WORDS = 1 << 17
# Longer ones (1,024 ids) are rare, and large.
_MAX_BYTES = 4 << 10


class WordCache(dict[Key, bytes], Generic[Key]):
    """A dict that computes what it does not have: `cache[word]` are the word's ids, as the bytes of an i32 array.

    Bytes, because joining them costs less than making an array of numbers. When it is full it starts anew: frequent
    words are back at once, and a change of the text's kind leaves nothing behind. Threads may share it: they may
    compute the same word twice.
    """

    def __init__(self, compute: Callable[[Key], bytes], max_words: int = _MAX_WORDS):
        super().__init__()
        self._compute, self._max_words = compute, max_words

    def __missing__(self, word: Key) -> bytes:
        ids = self._compute(word)
        if len(ids) <= _MAX_BYTES:
            if len(self) >= self._max_words:
                self.clear()
            self[word] = ids
        return ids
