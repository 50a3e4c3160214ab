"""Byte-pair codes by a table of words: encoding, decoding, and what is refused."""

import pytest

from raylingvo.data.tokenizers import BpeTokenizer
from raylingvo.errors import RequestError

WORDS = "words.txt"


def tokenizer(root, words="HELLO 4,5\nA 6\nHELLO 7,4\n", codes="<unk>\n<s>\n</s>\nx\nHE@@ 9\nLLO 8\n\nA 3\nH@@E@@ 2\n"):
    (root / WORDS).write_text(words)
    (root / "codes.txt").write_text(codes)
    return BpeTokenizer(codes_filepath="codes.txt", words_to_ids_filepath=WORDS)


def test_words_have_the_ids_of_their_last_line_and_unknown_ones_none(root):
    rows = tokenizer(root).encode_ragged(["HELLO A", "A  nope A", "", b"\xff"])
    assert [row.tolist() for row in rows] == [[7, 4, 6, 2], [6, 6, 2], [2], [2]]


def test_decoding_joins_pieces(root):
    texts = tokenizer(root).decode([[4, 5, 6, 7, 1, 99]], [6])
    assert texts == ["HELLO A HE@@<s> <unk> "]


def test_one_file_is_enough_for_one_direction(root):
    both = tokenizer(root)
    assert both.vocab_size == 8
    to_ids = BpeTokenizer(words_to_ids_filepath=WORDS)
    assert to_ids.vocab_size == 8
    with pytest.raises(RequestError, match=r"words.txt can only encode; give codes_filepath to decode"):
        to_ids.decode([[1]], [1])
    with pytest.raises(RequestError, match=r"codes.txt can only decode; give words_to_ids_filepath to encode"):
        BpeTokenizer(codes_filepath="codes.txt").encode(["A"], 2)
    with pytest.raises(ValueError, match="codes_filepath or words_to_ids_filepath must be given"):
        BpeTokenizer()


def test_other_special_ids(root):
    tokenizer(root)
    other = BpeTokenizer(words_to_ids_filepath=WORDS, target_sos_id=3, target_eos_id=0, pad_to_max_length=False)
    ids, labels, _ = other.encode(["A", "HELLO"], 9)
    assert (ids.tolist(), labels.tolist()) == ([[3, 6, 0], [3, 7, 4]], [[6, 0, 0], [7, 4, 0]])


@pytest.mark.parametrize("line", ["HELLO", "HELLO a,b", "HELLO ", "HELLO 99999999999"])
def test_a_line_that_is_no_word(root, line):
    with pytest.raises(RequestError, match=f"words.txt:2 must be `word id,id,..` .got '{line}'"):
        tokenizer(root, words=f"A 1\n{line}\n").encode(["A"], 2)
