"""Text and the same text without capitals and punctuation, to learn to put them back."""

from __future__ import annotations

import dataclasses
import string
from typing import Any

from raylingvo.data import fields
from raylingvo.data.text import EncodedPairs
from raylingvo.data.tokenizers import Tokenizer

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def unpunctuated(text: str) -> str:
    """A text in lower case, without ASCII punctuation, with single spaces: what a punctuator gets to read.

    Source: Lingvo's PunctuatorInput.
    """
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PunctuatorLines(EncodedPairs):
    """Text, to be restored from its `unpunctuated` form. Batches as of TextPairs: that form is the source.

    tokenizer: of both. field: the column or key of the text; "": the records are lines.
    """

    tokenizer: Tokenizer
    field: str = ""

    def _tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        return self.tokenizer, self.tokenizer

    def _texts(self, records: list[Any]) -> tuple[list[str], list[str]]:
        texts = [fields.text(record, self.field) for record in records]
        return [unpunctuated(text) for text in texts], texts
