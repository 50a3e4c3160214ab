"""The table of characters, by the reference's own lists and by a slow reading of the definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.tokenizers import AsciiTokenizer

MARKERS = {"<unk>": 0, "<s>": 1, "</s>": 2, "<noise>": 4, "<epsilon>": 73, "<text_only>": 74, "<sorw>": 75}
# The ids of single characters, as the reference numbers them.
IDS = {" ": 3, **{chr(ord("a") + i): 5 + i for i in range(26)}}
IDS |= {c: 31 + i for i, c in enumerate(".'-:!~`;0123456789\"#$%&()*+,/<=>?@[\\]^_{|}")}


def by_definition(text):
    content, ids, at = text.encode().lower(), [], 0
    while at < len(content):
        marker = next((m for m in MARKERS if content.startswith(m.encode(), at)), None)
        ids.append(MARKERS[marker] if marker else IDS.get(chr(content[at]), 0))
        at += len(marker) if marker else 1
    return ids


pieces = st.sampled_from([*MARKERS, "<UNK>", "<", ">", "</", "s>", "é", "猫", "\t", "\n"])


@given(text=st.lists(st.one_of(pieces, st.characters(max_codepoint=127), st.text(max_size=3)), max_size=20))
@settings(deadline=None, max_examples=100)
def test_ids_are_as_defined(text):
    text = "".join(text).encode("utf-8", "ignore").decode()
    (ids,) = AsciiTokenizer(append_eos=False).encode_ragged([text])
    assert ids.tolist() == by_definition(text)


@given(text=st.text(alphabet=list(IDS), max_size=30))
@settings(deadline=None, max_examples=100)
def test_text_of_the_table_comes_back(text):
    tokenizer = AsciiTokenizer(append_eos=False)
    (ids,) = tokenizer.encode_ragged([text])
    (again,) = tokenizer.decode([ids], [len(ids)])
    assert again == text


def test_a_sentence_that_is_cut_keeps_its_end():
    ids, labels, paddings = AsciiTokenizer().encode(["abcdef"], 4)
    assert (ids.tolist(), labels.tolist(), paddings.tolist()) == ([[1, 5, 6, 7]], [[5, 6, 7, 2]], [[0.0] * 4])


def test_the_first_row_of_lm1b():
    ids, labels, paddings = AsciiTokenizer().encode(["don 't !"], 20)
    assert ids[0].tolist() == [1, 8, 19, 18, 3, 32, 24, 3, 35] + [2] * 11
    assert labels[0].tolist() == [8, 19, 18, 3, 32, 24, 3, 35] + [2] * 12
    np.testing.assert_array_equal(1.0 - paddings[0], [1.0] * 9 + [0.0] * 11)


def test_special_ids():
    tokenizer = AsciiTokenizer()
    assert (tokenizer.unk_id, tokenizer.sos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2, 2)
    assert tokenizer.vocab_size == 76
    assert tokenizer.decode([[0, 1, 2, 73, 75, 76, -1]], [7]) == ["<unk><s></s><epsilon><sorw><unk><unk>"]


@pytest.mark.parametrize("text", [b"\xff\xfea", "\ud800a"])
def test_bytes_that_are_no_text_are_unknown(text):
    (ids,) = AsciiTokenizer(append_eos=False).encode_ragged([text])
    assert ids[-1] == 5 and set(ids[:-1].tolist()) == {0}
