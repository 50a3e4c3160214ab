"""Tables of tokens: ids by line and by column, and what a vocabulary must have."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.tokenizers.vocab import Vocab
from raylingvo.errors import RequestError


def vocab(*lines, load_token_ids=False):
    return Vocab([(i, line.encode()) for i, line in enumerate(lines, 1) if line], "v.txt", load_token_ids)


@given(
    tokens=st.lists(st.text(min_size=1, max_size=3).filter(lambda t: t.isalpha()), unique=True, max_size=20),
    data=st.data(),
)
@settings(deadline=None, max_examples=60)
def test_ids_and_tokens_are_inverse(tokens, data):
    lines = ["<unk>", "<s>", "</s>", *tokens]
    ids = data.draw(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=len(lines), max_size=len(lines), unique=True))
    by_line = vocab(*lines)
    by_column = vocab(*(f"{line}\t{id_}" for line, id_ in zip(lines, ids, strict=True)), load_token_ids=True)
    for position, (line, id_) in enumerate(zip(lines, ids, strict=True)):
        assert by_line.id_of(line.encode()) == position and by_line.token_of(position) == line.encode()
        assert by_column.id_of(line.encode()) == id_ and by_column.token_of(id_) == line.encode()
    assert (by_column.unk_id, by_column.sos_id, by_column.eos_id) == tuple(ids[:3])
    assert by_line.size == len(lines)


def test_unknown_tokens_and_ids():
    table = vocab("<S>", "</S>", "<UNK>", "a")
    assert table.id_of(b"b") == table.unk_id == 2
    assert table.token_of(99) == table.token_of(-1) == b"<UNK>"


def test_of_what_occurs_again_the_last_counts():
    table = vocab("<unk>\t0", "<s>\t1", "</s>\t2", "a\t3", "b\t3", "a\t5\tmore", load_token_ids=True)
    assert table.id_of(b"a") == 5 and table.token_of(3) == b"b" and table.token_of(5) == b"a"
    assert table.size == 6


def test_a_carriage_return_is_part_of_a_token_but_not_of_a_number():
    assert vocab("<unk>", "<s>", "</s>", "a\r").id_of(b"a\r") == 3
    assert vocab("<unk>\t0\r", "<s>\t1\r", "</s>\t2\r", load_token_ids=True).eos_id == 2


@pytest.mark.parametrize(
    ("lines", "load_token_ids", "message"),
    [
        (["<s>", "<unk>"], False, r"v.txt has no </s>; a vocabulary needs <s>, </s>, <unk>, or <S>, </S>, <UNK>"),
        (["a"], False, r"v.txt has no <S>, </S>, <UNK>; a vocabulary needs"),
        ([], False, r"v.txt has no <S>, </S>, <UNK>"),
        (["<s>", "</s>", "<unk>", "<S>"], False, r"v.txt has <S> as well as <s>; keep one case"),
        (["<S>", "</S>", "<UNK>", "<unk>"], False, r"v.txt has <unk> as well as <S>; keep one case"),
        (["<s>\t1", "</s>"], True, r"v.txt:2 must be a token, a tab, and its id \(got '' as id\); for ids by line"),
        (["<s>\t0.5"], True, r"v.txt:1 must be .* \(got '0.5' as id\).* load_token_ids_from_vocab=false"),
        (["<s>\t2147483648"], True, r"v.txt:1: an id must fit into 32 bits \(got 2147483648\)"),
    ],
)
def test_what_is_no_vocabulary(lines, load_token_ids, message):
    with pytest.raises(RequestError, match=message):
        vocab(*lines, load_token_ids=load_token_ids)
