"""Characters of a given alphabet, each with an id of its own: nothing of a text is lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from raylingvo.data.tokenizers.base import Text, Tokenizer, to_text

_SPECIAL = ("<unk>", "<s>", "</s>")
_UNK, _SOS, _EOS = range(3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CharacterTokenizer(Tokenizer):
    """The characters of `alphabet` have the ids from 3 on, in its order; <unk> is 0, <s> 1 and </s> 2.

    Capitals and line breaks count. A character that the alphabet does not have is <unk>. (Lingvo's own tokenizer of
    characters, `AsciiTokenizer`, has 76 ids and no capitals.)
    """

    alphabet: str

    def __post_init__(self) -> None:
        twice = sorted({c for c in self.alphabet if self.alphabet.count(c) > 1})
        if not self.alphabet or twice:
            got = f"{''.join(twice)!r} more than once" if twice else "none"
            raise ValueError(f"alphabet must have at least one character, and each once (got {got})")

    @property
    def vocab_size(self) -> int:
        return len(_SPECIAL) + len(self.alphabet)

    @property
    def sos_id(self) -> int:
        return _SOS

    @property
    def eos_id(self) -> int:
        return _EOS

    @property
    def unk_id(self) -> int:
        return _UNK

    def _tokens(self, strings: Sequence[Text], seed_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        texts = [to_text(string) if isinstance(string, bytes) else string for string in strings]
        code_of = np.array([ord(c) for c in self.alphabet], np.uint32)
        order = np.argsort(code_of)
        # A lone surrogate is no character of any alphabet.
        code = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
        place = np.minimum(np.searchsorted(code_of[order], code), len(order) - 1)
        known = code_of[order][place] == code
        ids = np.where(known, order[place] + len(_SPECIAL), _UNK).astype(np.int32)
        return ids, np.fromiter(map(len, texts), np.int64, len(texts))

    def _decode(self, rows: list[list[int]]) -> list[str]:
        table = [*_SPECIAL, *self.alphabet]
        return ["".join(table[i] if 0 <= i < len(table) else _SPECIAL[_UNK] for i in row) for row in rows]
