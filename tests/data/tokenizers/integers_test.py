"""Numbers are ids."""

import pytest

from raylingvo.data.tokenizers import IntegerTokenizer

TOKENIZER = IntegerTokenizer(size=100)


def test_numbers_are_ids_and_back():
    ids, labels, paddings = TOKENIZER.encode(["5 99  7", ""], 5)
    assert ids.tolist() == [[0, 5, 99, 7, 1], [0, 1, 1, 1, 1]]
    assert labels.tolist() == [[5, 99, 7, 1, 1], [1, 1, 1, 1, 1]]
    assert paddings.tolist() == [[0, 0, 0, 0, 1], [0, 1, 1, 1, 1]]
    assert TOKENIZER.decode(labels, [3, 0]) == ["5 99 7", ""]


@pytest.mark.parametrize("word", ["100", "-1", "x", "1.5", "9" * 5000, "\u00b2"])
def test_other_words_are_unknown(word):
    assert IntegerTokenizer(size=100, target_unk_id=3).encode_ragged([f"8 {word} 9"])[0].tolist() == [8, 3, 9, 1]


def test_special_ids_are_ids():
    with pytest.raises(ValueError, match=r"target_eos_id must be in \[0, size = 1\) \(got 1\)"):
        IntegerTokenizer(size=1)
