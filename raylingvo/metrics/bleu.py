"""Lingvo's corpus BLEU: on words as they stand between white space. Not sacreBLEU (metrics/translation.py)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_MAX_ORDER = 4  # of the n-grams


class BleuCounts(NamedTuple):
    """What BLEU needs to know of some sentences: integers, so that those of parts, `plus` each other, are the whole's.

    matches, possible: for n-grams of 1, 2, 3 and 4 words, how many of the hypotheses' stand in their references (each
    at most as often as it does there), and how many there are.
    """

    matches: tuple[int, ...] = (0,) * _MAX_ORDER
    possible: tuple[int, ...] = (0,) * _MAX_ORDER
    hypothesis_words: int = 0
    reference_words: int = 0

    @classmethod
    def of(cls, hypothesis: str, reference: str) -> BleuCounts:
        """Of one sentence."""
        hypothesis_words, reference_words = hypothesis.split(), reference.split()
        matches, possible = [], []
        for order in range(1, _MAX_ORDER + 1):
            found = _ngrams(hypothesis_words, order)
            matches.append((found & _ngrams(reference_words, order)).total())
            possible.append(found.total())
        return cls(tuple(matches), tuple(possible), len(hypothesis_words), len(reference_words))

    def plus(self, other: BleuCounts) -> BleuCounts:
        """Of the sentences of both."""
        return BleuCounts(
            tuple(a + b for a, b in zip(self.matches, other.matches, strict=True)),
            tuple(a + b for a, b in zip(self.possible, other.possible, strict=True)),
            self.hypothesis_words + other.hypothesis_words,
            self.reference_words + other.reference_words,
        )

    def score(self) -> float:
        """BLEU, 0 to 1: the geometric mean of the precisions, times the brevity penalty.

        The penalty is exp(1 - reference words / hypothesis words), and 1 if the hypotheses are not the shorter ones.
        Orders without a match are left out of the mean (in the published BLEU the score would be 0); without any match
        the score is 0. Lingvo: core/scorers.py, BleuScorer.
        """
        precisions = [match / possible for match, possible in zip(self.matches, self.possible, strict=True) if match]
        if not precisions:
            return 0.0
        mean = math.exp(math.fsum(map(math.log, precisions)) / len(precisions))
        return mean * math.exp(min(0.0, 1 - self.reference_words / self.hypothesis_words))


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of hypotheses with one reference each, 0 to 1; 0 of none. Raises ValueError if there are not as many."""
    counts = BleuCounts()
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        counts = counts.plus(BleuCounts.of(hypothesis, reference))
    return counts.score()


def _ngrams(words: list[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[i:] for i in range(order)), strict=False))
