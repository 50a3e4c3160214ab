"""Characters of an alphabet: every text comes back, and what is not in the alphabet is unknown."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylingvo.data.tokenizers import CharacterTokenizer

ALPHABET = "\nba Zé€😀"
TOKENIZER = CharacterTokenizer(alphabet=ALPHABET)


@given(st.lists(st.text(alphabet=ALPHABET)))
def test_every_text_comes_back(texts):
    ids, lens = CharacterTokenizer(alphabet=ALPHABET, append_eos=False).encode_flat(texts)
    assert lens.tolist() == [len(text) for text in texts]
    assert ids.tolist() == [3 + ALPHABET.index(c) for text in texts for c in text]
    starts = np.cumsum(lens) - lens
    rows = np.zeros((len(texts), max(lens, default=0)), np.int32)
    for row, start, length in zip(rows, starts, lens, strict=True):
        row[:length] = ids[start : start + length]
    assert TOKENIZER.decode(rows, lens) == texts


def test_ids_and_labels():
    ids, labels, paddings = TOKENIZER.encode(["ab", "Z"], 4)
    assert ids.tolist() == [[1, 5, 4, 2], [1, 7, 2, 2]]
    assert labels.tolist() == [[5, 4, 2, 2], [7, 2, 2, 2]]
    assert paddings.tolist() == [[0, 0, 0, 1], [0, 0, 1, 1]]
    assert TOKENIZER.vocab_size == 11


def test_what_the_alphabet_does_not_have_is_unknown():
    assert TOKENIZER.encode_ragged(["axé\ud800", b"a\xff"])[0].tolist() == [5, 0, 8, 0, 2]
    assert TOKENIZER.encode_ragged([b"a\xff"])[0].tolist() == [5, 0, 2]
    assert TOKENIZER.decode([[0, 1, 2, 99, -1]], [5]) == ["<unk><s></s><unk><unk>"]


@pytest.mark.parametrize(("alphabet", "got"), [("", "none"), ("abcab", "'ab' more than once")])
def test_an_alphabet_has_each_character_once(alphabet, got):
    with pytest.raises(ValueError, match=rf"alphabet must have at least one character, and each once \(got {got}\)"):
        CharacterTokenizer(alphabet=alphabet)
