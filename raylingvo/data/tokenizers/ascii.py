"""Characters: lower-case letters, digits, punctuation and a few markers in 76 ids."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from raylingvo.data.tokenizers.base import Text, Tokenizer, to_bytes

# fmt: off
_TOKENS = (
    "<unk>", "<s>", "</s>", " ", "<noise>", *"abcdefghijklmnopqrstuvwxyz.'-:!~`;0123456789\"#$%&()*+,/<=>?@[\\]^_{|}",
    "<epsilon>", "<text_only>", "<sorw>",
)
# fmt: on
_UNK, _SOS, _EOS = 0, 1, 2
_MARKERS = {token.encode(): bytes([i]) for i, token in enumerate(_TOKENS) if len(token) > 1}
_MARKER = re.compile(b"(" + b"|".join(map(re.escape, _MARKERS)) + b")")
# Byte -> id. Capitals are read as small letters.
_TABLE = bytes(_TOKENS.index(c) if (c := chr(byte).lower()) in _TOKENS and byte < 128 else _UNK for byte in range(256))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AsciiTokenizer(Tokenizer):
    """Each character a token. The table is Lingvo's ascii_tokenizer.cc, which its speech models were trained with.

    Letters lose their case; the markers <unk> <s> </s> <noise> <epsilon> <text_only> <sorw>, in any case, are a token
    each. Every other byte, so each byte of a character beyond ASCII, is <unk>. A sentence that is cut keeps its </s>.
    """

    _keeps_eos = True

    @property
    def vocab_size(self) -> int:
        return len(_TOKENS)

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
        rows = [_ids(to_bytes(string)) for string in strings]
        flat = np.frombuffer(b"".join(rows), np.uint8).astype(np.int32)
        return flat, np.fromiter(map(len, rows), np.int64, len(rows))

    def _decode(self, rows: list[list[int]]) -> list[str]:
        return ["".join(_TOKENS[i] if 0 <= i < len(_TOKENS) else _TOKENS[_UNK] for i in row) for row in rows]


def _ids(string: bytes) -> bytes:
    """A byte for each token."""
    if b"<" not in string:
        return string.translate(_TABLE)
    parts = _MARKER.split(string.lower())  # text, marker, text, .., text
    return b"".join(_MARKERS[part] if i % 2 else part.translate(_TABLE) for i, part in enumerate(parts))
