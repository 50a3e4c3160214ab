"""A cache computes each word once, and never holds too many or too long ones."""

from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.tokenizers._word_cache import WordCache


@given(words=st.lists(st.integers(0, 30), max_size=100), max_words=st.integers(1, 10))
@settings(deadline=None, max_examples=60)
def test_it_gives_what_is_computed_and_stays_small(words, max_words):
    cache = WordCache(lambda word: bytes([word]), max_words)
    for word in words:
        assert cache[word] == bytes([word])
        assert len(cache) <= max_words


def test_each_word_is_computed_once():
    computed = []
    cache = WordCache(lambda word: computed.append(word) or b"ids")
    assert [cache[word] for word in "abab"] == [b"ids"] * 4
    assert computed == ["a", "b"]


def test_what_is_long_is_not_kept():
    cache = WordCache(lambda word: bytes(word))
    assert len(cache[10_000]) == 10_000 and len(cache[10]) == 10
    assert list(cache) == [10]
