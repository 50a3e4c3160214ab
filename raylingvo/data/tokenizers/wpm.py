"""Word pieces: characters of a word, merged by the priority of a vocabulary."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Sequence

import numpy as np

from raylingvo.data.tokenizers import _files
from raylingvo.data.tokenizers._random import uniform
from raylingvo.data.tokenizers._word_cache import WordCache
from raylingvo.data.tokenizers.base import Text, TokenizerWithGivenIds, flatten, to_bytes, to_text
from raylingvo.data.tokenizers.vocab import Vocab
from raylingvo.errors import RequestError

WORD_START = "\u2581"
_ASCII_SPACE = " \t\n\r\v\f"
_NONE = 1 << 31  # above all ids: two pieces that do not merge
# From here on a heap pays: below, looking at all pairs for each merge is quicker.
_LONG = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class WpmTokenizer(TokenizerWithGivenIds):
    """Splits at ASCII white space, puts U+2581 before each word, and merges the word's characters.

    Of all adjacent pairs whose concatenation is a piece, the one whose piece has the lowest id is merged, the leftmost
    if there are several, until there is none. A character that is no piece is <unk>. Decoding makes U+2581 a space.
    Source: Schuster and Nakajima, Japanese and Korean voice search, ICASSP 2012; Lingvo's wpm_encoder.py.

    vocab_filepath: a line for each piece, in the order of ids; the piece ends at the first tab. Empty lines do not
    count. Its <unk>, <s> and </s> must have the ids that are given here. White space around a piece is dropped if it is
    ASCII (Lingvo drops any, and so loses a piece that is a no-break space).
    merge_prob: merging of a word stops before each merge with the probability 1 - merge_prob, so that models see rarer
    segmentations (as BPE-dropout does); at 0 all words are characters.

    A sentence that is cut loses </s>.
    """

    vocab_filepath: str
    merge_prob: float = 1.0

    _leaves_room_for_eos = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.merge_prob <= 1.0:
            raise ValueError(f"merge_prob must be in [0, 1] (got {self.merge_prob})")

    @property
    def vocab_size(self) -> int:
        return self._merger.vocab.size

    @property
    def is_random(self) -> bool:
        return self.merge_prob < 1.0

    @property
    def _merger(self) -> Merger:
        merger = _files.load(self.vocab_filepath, _parse)
        for name in ("unk", "sos", "eos"):
            expected, found = getattr(self, f"{name}_id"), getattr(merger.vocab, f"{name}_id")
            if found != expected:
                raise RequestError(
                    f"target_{name}_id={expected}, but {self.vocab_filepath} has "
                    f"{to_text(merger.vocab.token_of(found))} at {found}; set target_{name}_id={found}"
                )
        return merger

    def _paths(self) -> Sequence[str]:
        return (self.vocab_filepath,)

    def _tokens(self, strings: Sequence[Text], seed_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Of bytes, split() knows ASCII white space only.
        sentences = [to_bytes(string).split() for string in strings]
        if self.is_random:
            return flatten(self._partly_merged(sentences, seed_N))
        ids_of = self._merger.words.__getitem__
        return flatten([b"".join(map(ids_of, words)) for words in sentences])

    def _partly_merged(self, sentences: Sequence[list[bytes]], seed_N: np.ndarray) -> list[bytes]:
        """The ids of each sentence, each word merged as often as drawn."""
        length_N = np.array([len(words) for words in sentences], np.int64)
        position = np.arange(length_N.sum()) - np.repeat(np.cumsum(length_N) - length_N, length_N)
        draws = 1.0 - uniform(np.repeat(seed_N, length_N), position.astype(np.uint64))
        # The number of draws below merge_prob before the first that is not has a geometric distribution.
        if self.merge_prob > 0.0:
            merges = np.minimum(np.log(draws) / np.log(self.merge_prob), 1e9).astype(np.int64).tolist()
        else:
            merges = [0] * len(draws)
        of_words, ids_of = iter(merges), self._merger.ids_after
        return [b"".join([ids_of(word, next(of_words)) for word in words]) for words in sentences]

    def _pieces_of(self, row: list[int]) -> list[str]:
        return [self._merger.piece_of(id_) for id_ in row]

    def _decode(self, rows: list[list[int]]) -> list[str]:
        piece_of = self._merger.piece_of
        texts = ("".join(map(piece_of, row)) for row in rows)
        return [text.replace(WORD_START, " ").strip(_ASCII_SPACE) for text in texts]


class Merger:
    """A vocabulary of word pieces, and the words that were merged by it."""

    def __init__(self, vocab: Vocab):
        self.vocab = vocab
        self._ids = {to_text(piece): id_ for piece, id_ in vocab.ids.items()}
        self._pieces = {id_: to_text(piece) for id_, piece in vocab.tokens.items()}
        self._unk = to_text(vocab.unk_token)
        self.words: WordCache[bytes] = WordCache(lambda word: self._ids_after(word, None))
        self._partly: WordCache[tuple[bytes, int]] = WordCache(lambda key: self._ids_after(*key))

    def ids_after(self, word: bytes, merges: int) -> bytes:
        """The ids of a word after so many merges, or all that are possible if these are less."""
        # There are fewer merges than characters, and no more characters than bytes.
        return self._partly[word, merges] if merges < len(word) else self.words[word]

    def piece_of(self, id_: int) -> str:
        return self._pieces.get(id_, self._unk)

    def _ids_after(self, word: bytes, merges: int | None) -> bytes:
        characters = WORD_START + to_text(word)
        # An unknown character takes part as the text `<unk>`, which pieces may begin or end with.
        pieces = [c if c in self._ids else self._unk for c in characters]
        merge = self._merge_long if len(pieces) > _LONG else self._merge
        return np.array([self._ids[piece] for piece in merge(pieces, merges)], np.int32).tobytes()

    def _merge(self, pieces: list[str], merges: int | None) -> list[str]:
        """The pieces of a word after `merges` merges, None: all."""
        get = self._ids.get
        ids = [get(a + b, _NONE) for a, b in itertools.pairwise(pieces)]  # of each pair
        while ids and merges != 0:
            best = min(ids)
            if best == _NONE:
                break
            i = ids.index(best)
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
            del ids[i]
            if i > 0:
                ids[i - 1] = get(pieces[i - 1] + pieces[i], _NONE)
            if i < len(ids):
                ids[i] = get(pieces[i] + pieces[i + 1], _NONE)
            merges = merges and merges - 1
        return pieces

    def _merge_long(self, pieces: list[str], merges: int | None) -> list[str]:
        """The same, in n log n steps: text without white space, such as Chinese, is one long word."""
        get, end = self._ids.get, len(pieces)
        left, right = list(range(-1, end - 1)), list(range(1, end + 1))  # neighbours that are still there
        ids = [get(a + b, _NONE) for a, b in itertools.pairwise(pieces)] + [_NONE]  # of the pair that starts here
        heap = [(id_, i) for i, id_ in enumerate(ids) if id_ != _NONE]
        heapq.heapify(heap)
        while heap and merges != 0:
            best, i = heapq.heappop(heap)
            if ids[i] != best:
                continue  # one of the pair has been merged since
            gone = right[i]
            pieces[i] += pieces[gone]
            pieces[gone], ids[gone] = "", _NONE
            right[i] = right[gone]
            if right[i] < end:
                left[right[i]] = i
            for a, b in ((left[i], i), (i, right[i])):
                if a >= 0:
                    ids[a] = get(pieces[a] + pieces[b], _NONE) if b < end else _NONE
                    if ids[a] != _NONE:
                        heapq.heappush(heap, (ids[a], a))
            merges = merges and merges - 1
        return [piece for piece in pieces if piece]


def _parse(content: bytes, name: str) -> Merger:
    stripped = ((number, line.strip()) for number, line in _files.lines(content))
    return Merger(Vocab(((number, line) for number, line in stripped if line), name, load_token_ids=False))
