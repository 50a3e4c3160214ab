"""Subwords of Tensor2Tensor, in which MLPerf's English-German data are stored."""

from __future__ import annotations

import dataclasses
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from raylingvo.data.tokenizers import _files
from raylingvo.data.tokenizers._word_cache import WordCache
from raylingvo.data.tokenizers.base import Text, Tokenizer, flatten, to_bytes, to_text
from raylingvo.errors import RequestError

_EOS = 1
_ESCAPED = re.compile(r"\\u|\\\\|\\([0-9]+);")


@dataclasses.dataclass(frozen=True, kw_only=True)
class T2tSubwordTokenizer(Tokenizer):
    """Runs of letters and digits, and runs of other characters, each cut into the longest subwords from the left.

    A single space between two runs of letters is left out, as it can be put back. A run ends in `_`; `_` itself and
    the backslash are escaped in it, and characters that no subword has become their numbers, so nothing is unknown.
    Source: SubwordTextEncoder of Tensor2Tensor. The ids are MLPerf's: <pad> 0, which also starts a sentence and stands
    behind its end, and <EOS> 1. Lingvo can only decode, does not undo the escapes (`ml_perf_subword_id_to_string`).

    vocab_filepath: a line for each id: the subword in quotes. A sentence that is cut loses <EOS>.
    """

    vocab_filepath: str

    @property
    def vocab_size(self) -> int:
        return len(self._subwords.texts)

    @property
    def sos_id(self) -> int:
        return 0

    @property
    def eos_id(self) -> int:
        return _EOS

    @property
    def unk_id(self) -> int:
        return 0

    @property
    def pad_id(self) -> int:
        return 0

    @property
    def _subwords(self) -> _Subwords:
        return _files.load(self.vocab_filepath, _parse)

    def _paths(self) -> Sequence[str]:
        return (self.vocab_filepath,)

    def _tokens(self, strings: Sequence[Text], seed_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids_of = self._subwords.runs.__getitem__
        return flatten([b"".join(map(ids_of, _runs(to_text(to_bytes(string))))) for string in strings])

    def _pieces_of(self, row: list[int]) -> list[str]:
        return [self.joined([id_]) for id_ in row]

    def _decode(self, rows: list[list[int]]) -> list[str]:
        return [_spaced([_unescaped(run) for run in self.joined(row).split("_") if run], "LN") for row in rows]

    def joined(self, row: Sequence[int]) -> str:
        """The subwords of ids, one behind the other; an id that the vocabulary does not have is a run `<unk>`."""
        texts = self._subwords.texts
        return "".join(texts[i] if 0 <= i < len(texts) else "<unk>_" for i in row)


def lingvo_text(joined: str) -> str:
    """The text of joined subwords, as Lingvo's MlPerfSubwordIdToString has it: escapes stay, empty runs count."""
    return _spaced(joined.split("_"), ("L", "Nd"))


def _is_a(character: str, categories: str | tuple[str, ...]) -> bool:
    return unicodedata.category(character).startswith(tuple(categories))


def _runs(text: str) -> Iterator[str]:
    """The runs of a text, without single spaces, except at its ends."""
    runs = ["".join(run) for _, run in itertools.groupby(text, lambda c: _is_a(c, "LN"))]
    return (run for i, run in enumerate(runs) if run != " " or i in (0, len(runs) - 1))


def _spaced(runs: Sequence[str], categories: str | tuple[str, ...]) -> str:
    """The runs, with a space between two that both start with a character of these categories."""
    starts = [bool(run) and _is_a(run[0], categories) for run in runs]
    return "".join(" " * (i > 0 and starts[i - 1] and starts[i]) + run for i, run in enumerate(runs))


def _unescaped(run: str) -> str:
    return _ESCAPED.sub(lambda match: {"\\u": "_", "\\\\": "\\"}.get(match[0]) or _character(match), run)


def _character(match: re.Match[str]) -> str:
    number = int(match[1])
    return chr(number) if number < 0x110000 else match[0]


class _Subwords:
    """A vocabulary of subwords, and the runs that were cut by it."""

    def __init__(self, texts: Sequence[str], name: str):
        self.texts = texts
        self._ids = {text: i for i, text in enumerate(texts)}
        self._longest = max(map(len, texts), default=0)
        self._alphabet = frozenset("".join(texts)) - {"\n"}
        self._name = name
        self.runs: WordCache[str] = WordCache(self._cut)

    def _cut(self, run: str) -> bytes:
        run = run.replace("\\", "\\\\").replace("_", "\\u")
        run = "".join(c if c in self._alphabet else f"\\{ord(c)};" for c in run) + "_"
        ids, start = [], 0
        while start < len(run):
            stops = range(min(start + self._longest, len(run)), start, -1)
            stop = next((stop for stop in stops if run[start:stop] in self._ids), None)
            if stop is None:
                raise RequestError(f"{self._name} has no subword for {run[start]!r}, so it can only decode")
            ids.append(self._ids[run[start:stop]])
            start = stop
        return np.array(ids, np.int32).tobytes()


def _parse(content: bytes, name: str) -> _Subwords:
    lines = _files.lines(content)
    for number, line in lines:
        if len(line) < 3 or line[:1] not in b"'\"" or line[-1:] != line[:1]:
            raise RequestError(f"{name}:{number} must be a subword in quotes (got {to_text(line)!r})")
    return _Subwords([to_text(line[1:-1]) for _, line in lines], name)
