"""Tensor2Tensor's subwords: 8,941 real pairs decode to text that encodes to the same ids again."""

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.records import open_records
from raylingvo.data.tf_example import Feature, parse_examples
from raylingvo.data.tokenizers import T2tSubwordTokenizer, ml_perf_subword_id_to_string
from raylingvo.errors import RequestError

VOCAB = "mlperf.ende.subwords.vocab"


def padded(rows):
    lens = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), lens.max(initial=0)), np.int32)
    ids[np.arange(ids.shape[1]) < lens[:, None]] = np.concatenate([np.empty(0, int), *rows])
    return ids, lens


def test_the_pairs_of_wmt(vocabularies):
    tokenizer = T2tSubwordTokenizer(vocab_filepath=VOCAB)
    records = open_records(str(vocabularies.parent / "wmt" / "translate_ende_wmt32k-train-00511-of-00512"))
    names = ("inputs", "targets")
    examples = parse_examples(records.read(np.arange(len(records))), {name: Feature("int64") for name in names})
    assert len(examples) == 8941
    texts = {}
    for name in names:
        rows = [example[name] for example in examples]
        ids, lens = padded(rows)
        texts[name] = tokenizer.decode(ids, lens - 1)  # without <EOS>
        for row, again in zip(rows, tokenizer.encode_ragged(texts[name]), strict=True):
            np.testing.assert_array_equal(again, row)
        # Lingvo's op gives the same text, but for the escapes, and spaces beside numbers such as a fraction.
        theirs = ml_perf_subword_id_to_string(ids, lens - 1, vocab_filepath=VOCAB)
        assert sum(a != b for a, b in zip(texts[name], theirs, strict=True)) < 60
        differ = [b for a, b in zip(texts[name], theirs, strict=True) if a != b]
        assert all("\\" in b or any(unicodedata.category(c) in ("No", "Nl") for c in b) for b in differ)
    assert texts["inputs"][4] == "A Failed Global Recovery"
    assert texts["targets"][4] == "Gescheiterte Erholung der Weltwirtschaft"
    assert texts["inputs"][0].startswith("Such a strategy implies, first of all, a solid partnership with China,")
    # Readable: letters, spaces and little else, with the commonest words of the two languages.
    for name, words in (("inputs", {"the", "of", "and"}), ("targets", {"die", "der", "und"})):
        text = " ".join(texts[name])
        readable = sum(unicodedata.category(c)[0] in "LZ" for c in text) / len(text)
        assert readable > 0.92 and "<unk>" not in text
        found = text.split()
        assert sum(found.count(word) for word in words) > 0.05 * len(found)


@pytest.fixture(scope="module")
def tokenizer(test_data):
    return T2tSubwordTokenizer(vocab_filepath=str(test_data / "vocab" / VOCAB), append_eos=False)


@given(text=st.one_of(st.text(max_size=30), st.text(alphabet="ab1 _\\u;²é猫,.\n\t", max_size=20)))
@settings(deadline=None, max_examples=100)
def test_any_text_comes_back(tokenizer, text):
    text = text.encode("utf-8", "ignore").decode()
    (ids,) = tokenizer.encode_ragged([text])
    assert tokenizer.decode(*padded([ids])) == [text]


def test_special_ids(vocabularies):
    tokenizer = T2tSubwordTokenizer(vocab_filepath=VOCAB)
    ids, labels, paddings = tokenizer.encode(["A Failed Global Recovery"], 8)
    assert labels.tolist() == [[184, 26400, 96, 2793, 21507, 1, 0, 0]]
    assert ids.tolist() == [[0, 184, 26400, 96, 2793, 21507, 1, 0]]
    assert paddings.tolist() == [[0.0] * 6 + [1.0] * 2]
    assert tokenizer.vocab_size == 33708
    assert tokenizer.decode([[184, 99999, -1, 184]], [4]) == ["A<unk><unk>A"]


def test_lingvo_keeps_escapes_and_counts_empty_runs(root):
    (root / "v").write_text("'a_'\n'_'\n'\\u_'\n'²_'\n")
    ids, lens = [[0, 1, 0], [0, 2, 0], [0, 3, 0]], [3, 3, 3]
    assert ml_perf_subword_id_to_string(ids, lens, vocab_filepath="v") == ["aa", "a\\ua", "a²a"]
    assert T2tSubwordTokenizer(vocab_filepath="v").decode(ids, lens) == ["a a", "a_a", "a ² a"]


def test_numbers_beyond_unicode_stay(root):
    (root / "v").write_text("'\\99999999;_'\n'\\97;_'\n")
    assert T2tSubwordTokenizer(vocab_filepath="v").decode([[0], [1]], [1, 1]) == ["\\99999999;", "a"]


def test_a_vocabulary_that_cannot_spell(root):
    (root / "v").write_text("'a_'\n'b_'\n")
    with pytest.raises(RequestError, match=r"v has no subword for 'b', so it can only decode"):
        T2tSubwordTokenizer(vocab_filepath="v").encode(["ba"], 4)


@pytest.mark.parametrize("line", ["''", "word", "'a_", "a_'", "'a_\""])
def test_a_line_that_is_no_subword(root, line):
    (root / "v").write_text(f"'a_'\n\n{line}\n")
    with pytest.raises(RequestError, match=f"v:3 must be a subword in quotes \\(got {re.escape(repr(line))}\\)"):
        T2tSubwordTokenizer(vocab_filepath="v").encode(["a"], 4)
