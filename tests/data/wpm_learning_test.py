"""Learning counts again only what changes, and makes the pieces that counting everything would make."""

import collections
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.tokenizers.wpm import WORD_START
from raylingvo.data.wpm_learning import learn
from raylingvo.errors import RequestError


def by_definition(counts, size, reserved):
    characters = collections.Counter()
    for word, n in counts.items():
        characters.update({c: word.count(c) * n for c in set(word)})
    pieces = [WORD_START, *sorted(characters, key=lambda c: (-characters[c], c))]
    words = {word: [WORD_START, *word] for word in counts}
    while len(pieces) < size:
        found = collections.Counter()
        for word, symbols in words.items():
            for a, b in itertools.pairwise(symbols):
                found[a + b] += counts[word]
        found = {key: n for key, n in found.items() if n >= 2 and key not in pieces and key not in reserved}
        if not found:
            break
        best = min(found, key=lambda key: (-found[key], key))
        for word, symbols in words.items():
            i, merged = 0, []
            while i < len(symbols):
                if symbols[i : i + 2] and "".join(symbols[i : i + 2]) == best and i + 1 < len(symbols):
                    merged.append(best)
                    i += 2
                else:
                    merged.append(symbols[i])
                    i += 1
            words[word] = merged
        pieces.append(best)
    return pieces


@given(
    counts=st.dictionaries(st.text(alphabet="abc", min_size=1, max_size=9), st.integers(1, 5), min_size=1, max_size=12),
    size=st.integers(4, 40),
    reserved=st.sets(st.text(alphabet="abc", min_size=2, max_size=3), max_size=3),
)
@settings(deadline=None, max_examples=100)
def test_pieces_are_as_defined(counts, size, reserved):
    got = learn(counts, size, character_coverage=1.0, reserved=reserved, progress=lambda done, total: None)
    assert got == by_definition(counts, size, reserved)


def test_nothing_merges_across_an_unknown_character():
    counts = {"ab?ab": 9, "?": 1}
    got = learn(counts, 20, character_coverage=0.75, reserved=frozenset(), progress=lambda done, total: None)
    assert got == [WORD_START, "a", "b", "ab", f"{WORD_START}ab"]


def test_too_small():
    with pytest.raises(RequestError, match="3 characters, for which a vocabulary of 3 pieces is too small"):
        learn({"abc": 1}, 3, character_coverage=1.0, reserved=frozenset(), progress=lambda done, total: None)
