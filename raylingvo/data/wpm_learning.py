"""Learns word pieces: what a greedy encoder should merge, most frequent first."""

from __future__ import annotations

import collections
import heapq
import itertools
from collections.abc import Callable, Mapping, Set

from raylingvo.data.tokenizers.wpm import WORD_START
from raylingvo.errors import RequestError

_MIN_COUNT = 2  # a piece that occurs once says nothing about other text


def learn(
    counts: Mapping[str, int],
    size: int,
    *,
    character_coverage: float,
    reserved: Set[str],
    progress: Callable[[int, int], None],
) -> list[str]:
    """At most `size` pieces for words that occur so often: U+2581, the characters, then merges in order of priority.

    Byte-pair encoding (Sennrich et al., ACL 2016), but counted by concatenation and not by pair, because that is what
    the encoder merges by: `ab` is one piece, whether it was made of a and b at both its places or not. Ties go to the
    concatenation that sorts first, so the result is a function of the counts. `reserved` pieces are not made.

    Only what a merge changes is counted again: 29,000 sentences give 4,000 pieces in about 2 s.
    Raises RequestError if the characters alone are more than `size`.
    """
    characters = _characters(counts, character_coverage)
    if len(characters) + 1 > size:
        raise RequestError(
            f"the text has {len(characters)} characters, for which a vocabulary of {size} pieces is too small; "
            "ask for more, or for less than all characters (character_coverage)"
        )
    pieces = [WORD_START, *characters]
    corpus = _Corpus(counts, frozenset(pieces))
    made = {*pieces, *reserved}
    while len(pieces) < size:
        best = corpus.most_frequent(made)
        if best is None:
            break
        corpus.merge(best)
        pieces.append(best)
        made.add(best)
        if len(pieces) % 100 == 0:
            progress(len(pieces), size)
    progress(len(pieces), size)
    return pieces


def _characters(counts: Mapping[str, int], coverage: float) -> list[str]:
    """The most frequent characters that together are `coverage` of the text."""
    found: collections.Counter[str] = collections.Counter()
    for word, n in counts.items():
        for c in word:
            found[c] += n
    found.pop(WORD_START, None)
    ranked = sorted(found, key=lambda c: (-found[c], c))
    wanted = coverage * sum(found.values())
    covered = [0, *itertools.accumulate(found[c] for c in ranked)]
    return [c for c, before in zip(ranked, covered, strict=False) if before < wanted]


class _Corpus:
    """The words in pieces, and how often each concatenation of two adjacent pieces occurs."""

    def __init__(self, counts: Mapping[str, int], known: Set[str]):
        self._counts = list(counts.values())
        # "": an unknown character, a border that nothing is merged across.
        self._words = [[c if c in known else "" for c in WORD_START + word] for word in counts]
        self._found: collections.Counter[str] = collections.Counter()
        # The words where a concatenation occurs, or did.
        self._where: collections.defaultdict[str, set[int]] = collections.defaultdict(set)
        for i, word in enumerate(self._words):
            for key in _concatenations(word):
                self._found[key] += self._counts[i]
                self._where[key].add(i)
        # (-count, concatenation): of each at least one that is not too low. What is too high is noticed when it is due.
        self._heap = [(-n, key) for key, n in self._found.items()]
        heapq.heapify(self._heap)

    def most_frequent(self, made: Set[str]) -> str | None:
        """The concatenation, not yet made, that occurs most often; None if none occurs often enough."""
        while self._heap:
            count, key = heapq.heappop(self._heap)
            found = self._found.get(key, 0)
            if key in made or found < _MIN_COUNT:
                continue
            if found == -count:
                return key
            heapq.heappush(self._heap, (-found, key))
        return None

    def merge(self, key: str) -> None:
        """Merges `key` wherever it occurs, the leftmost first."""
        grown: set[str] = set()
        for i in self._where.pop(key):
            old = _concatenations(self._words[i])
            self._words[i] = _merged(self._words[i], key)
            new = _concatenations(self._words[i])
            for other in old:
                self._found[other] -= self._counts[i]
            for other in new:
                self._found[other] += self._counts[i]
                self._where[other].add(i)
            grown.update(collections.Counter(new) - collections.Counter(old))
        for other in grown:
            heapq.heappush(self._heap, (-self._found[other], other))


def _concatenations(pieces: list[str]) -> list[str]:
    return [a + b for a, b in itertools.pairwise(pieces) if a and b]


def _merged(pieces: list[str], key: str) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        # Only what came from two pieces of the word as it was may merge: `key` has just been made.
        if merged and piece and merged[-1] and merged[-1] != key and merged[-1] + piece == key:
            merged[-1] = key
        else:
            merged.append(piece)
    return merged
