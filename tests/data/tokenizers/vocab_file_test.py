"""Words by a vocabulary file: splitting, ids, and the reference's values."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.tokenizers import VocabFileTokenizer
from raylingvo.data.tokenizers.vocab_file import splitter
from raylingvo.errors import RequestError


@given(parts=st.lists(st.text(alphabet="ab\t €", max_size=3)), delimiter=st.sampled_from([" ", "_", "|,", "€x"]))
@settings(deadline=None, max_examples=100)
def test_splitting_is_as_defined(parts, delimiter):
    text = delimiter[0].join(parts) + delimiter[-1].join(parts)
    expected, part = [], ""
    for c in text + delimiter[0]:
        if c in delimiter:
            if part.strip(" \t"):
                expected.append(part)
            part = ""
        else:
            part += c
    assert [token.decode() for token in splitter(delimiter)(text.encode())] == expected


def test_without_a_delimiter_bytes_are_tokens():
    assert splitter("")("a é".encode()) == [b"a", b" ", b"\xc3", b"\xa9"]


def test_words_of_the_reference(vocabularies):
    tokenizer = VocabFileTokenizer(token_vocab_filepath="test_vocab.txt")
    ids, labels, paddings = tokenizer.encode(["a b c d e"], 10)
    assert ids.tolist() == [[1, 5, 6, 7, 8, 9, 2, 2, 2, 2]]
    assert labels.tolist() == [[5, 6, 7, 8, 9, 2, 2, 2, 2, 2]]
    assert paddings.tolist() == [[0.0] * 6 + [1.0] * 4]
    assert tokenizer.decode(labels, [5]) == ["a b c d e"]
    assert (tokenizer.vocab_size, tokenizer.unk_id) == (14, 3)


def test_a_language_model_of_the_reference(vocabularies):
    # lingvo-tasks.md 2.1: the ids of three strings, with <S> in front, and </S> behind where there is room.
    tokenizer = VocabFileTokenizer(token_vocab_filepath="small_word_vocab.txt")
    words = {i: tokenizer.decode([[i]], [1])[0] for i in (21, 35, 8, 41, 61)}
    texts = [f"unheard {words[21]} {words[35]} of", f"strange {words[8]}", f"{words[41]} odd {words[61]}"]
    ids, _, _ = tokenizer.encode([texts[0].removesuffix(" of") + " odd", texts[1], texts[2]], 5)
    assert ids.tolist() == [[1, 3, 21, 35, 3], [1, 3, 8, 2, 2], [1, 41, 3, 61, 2]]


def test_a_sentence_that_is_cut_loses_its_end(vocabularies):
    tokenizer = VocabFileTokenizer(token_vocab_filepath="test_vocab.txt")
    ids, labels, paddings = tokenizer.encode(["a b c d e"], 3)
    assert (ids.tolist(), labels.tolist(), paddings.tolist()) == ([[1, 5, 6]], [[5, 6, 7]], [[0.0] * 3])


def test_what_was_encoded_by_column_is_decoded_by_column(root):
    (root / "v.txt").write_text("<unk>\t7\n<s>\t3\n</s>\t5\nfoo\t11\nbar\t0\n")
    tokenizer = VocabFileTokenizer(token_vocab_filepath="v.txt", append_eos=False)
    (ids,) = tokenizer.encode_ragged(["foo bar baz"])
    assert ids.tolist() == [11, 0, 7]
    assert tokenizer.decode([ids], [3]) == ["foo bar <unk>"]
    by_line = VocabFileTokenizer(ngram_vocab_filepath="v.txt", ngram_separator="-")
    assert by_line.decode([[3, 4, 11]], [3]) == ["foo-bar-<unk>"]


def test_ngrams_cannot_be_encoded(vocabularies):
    tokenizer = VocabFileTokenizer(ngram_vocab_filepath="test_ngrams.txt")
    assert tokenizer.vocab_size == 255
    with pytest.raises(RequestError, match="n-grams can only be decoded; give token_vocab_filepath"):
        tokenizer.encode(["a"], 3)


def test_one_file_must_be_given():
    for files in ({}, {"token_vocab_filepath": "a", "ngram_vocab_filepath": "b"}):
        with pytest.raises(ValueError, match="one of token_vocab_filepath and ngram_vocab_filepath must be given"):
            VocabFileTokenizer(**files)


def test_a_pattern_names_one_file(root):
    for name in ("v-1.txt", "v-2.txt"):
        (root / name).write_text("<unk>\n<s>\n</s>\n")
    assert VocabFileTokenizer(token_vocab_filepath="v-1*", load_token_ids_from_vocab=False).vocab_size == 3
    with pytest.raises(RequestError, match=r"v-\* must match one file; it matches 2: "):
        VocabFileTokenizer(token_vocab_filepath="v-*").check()
