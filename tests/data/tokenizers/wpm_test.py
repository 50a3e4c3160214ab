"""Word pieces are merged as defined, quickly or not, wholly or in part; real data come out as they were stored."""

import collections
import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.records import open_records
from raylingvo.data.tf_example import Feature, parse_examples
from raylingvo.data.tokenizers import WpmTokenizer, wpm
from raylingvo.data.tokenizers.vocab import Vocab
from raylingvo.data.tokenizers.wpm import WORD_START, Merger
from raylingvo.errors import RequestError

SPECIALS = ["<unk>", "<s>", "</s>"]


def merger(pieces):
    return Merger(Vocab([(i, piece.encode()) for i, piece in enumerate([*SPECIALS, *pieces])], "v", False))


def by_definition(pieces, word, merges=10**9):
    """One merge after another, looking at every pair each time."""
    ids = {piece: i for i, piece in enumerate([*SPECIALS, *pieces])}
    symbols = [c if c in ids else "<unk>" for c in WORD_START + word]
    for _ in range(merges):
        found = [(ids[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in ids]
        if not found:
            break
        _, i = min(found)
        symbols[i : i + 2] = ["".join(symbols[i : i + 2])]
    return [ids[symbol] for symbol in symbols]


def numbers(ids):
    return np.frombuffer(ids, np.int32).tolist()


pieces = st.lists(st.text(alphabet="ab" + WORD_START, min_size=1, max_size=5), unique=True, max_size=30)
unknown_pieces = st.lists(st.sampled_from(["a<unk>", "<unk>b", "<unk><unk>", "x<unk>", "<", "unk>", "s>", "<s"]))
words = st.text(alphabet="abx<sunk>", min_size=1, max_size=20)


@pytest.mark.parametrize("long", [0, 1000])
@given(pieces=pieces, more=unknown_pieces, word=words, merges=st.integers(0, 21))
@settings(deadline=None, max_examples=100)
def test_merging_is_as_defined(long, pieces, more, word, merges):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wpm, "_LONG", long)
        pieces = list(dict.fromkeys([*pieces, *more]))
        assert numbers(merger(pieces).words[word.encode()]) == by_definition(pieces, word)
        assert numbers(merger(pieces).ids_after(word.encode(), merges)) == by_definition(pieces, word, merges)


def test_a_long_word_takes_no_square_of_time():
    table = merger([WORD_START, "a", "b", "ab", "abab", "abababab"])
    ids = numbers(table.words[b"ab" * 100_000])  # 20 s if each merge looked at all pairs
    assert collections.Counter(ids) == {8: 25_000, 3: 1}
    assert len(table.words) == 0  # too long to be kept


@given(text=st.lists(st.text(alphabet="abc", min_size=1, max_size=8), max_size=6))
@settings(deadline=None, max_examples=60)
def test_text_of_known_characters_comes_back(tmp_path_factory, text):
    tokenizer = WpmTokenizer(vocab_filepath=str(small(tmp_path_factory)), append_eos=False)
    (ids,) = tokenizer.encode_ragged([" \t".join(text)])
    assert tokenizer.decode([ids], [len(ids)]) == [" ".join(text)]


def small(tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "small.vocab"
    if not file.exists():
        file.write_text("\n".join([*SPECIALS, WORD_START, "a", "b", "c", "ab", f"{WORD_START}a", "abc", "bc", "cc"]))
    return file


def test_only_ascii_space_separates_words(root):
    (root / "v").write_text("\n".join([*SPECIALS, "  ▁\t7 ", "a", "\u00a0", "b \r", "a\u00a0"]), newline="\n")
    tokenizer = WpmTokenizer(vocab_filepath="v", append_eos=False)
    (ids,) = tokenizer.encode_ragged(["a\u00a0b \x0b\x0c a"])
    assert ids.tolist() == [3, 7, 6, 3, 4]
    assert tokenizer.decode([ids], [len(ids)]) == ["a\u00a0b a"]


def test_sentences_of_the_reference(vocabularies):
    tokenizer = WpmTokenizer(vocab_filepath="wpm-ende-2k.voc")
    english, german = "Too much has changed.", "Dafür hat sich zu viel verändert."
    rows = tokenizer.encode_ragged([english, german, "Hello!", "Hallo!"])
    assert [row.tolist() for row in rows] == [
        [109, 251, 98, 595, 1009, 245, 326, 129, 4, 2],
        [197, 446, 458, 419, 284, 323, 1411, 571, 456, 409, 13, 4, 2],
        [115, 276, 18, 66, 2],
        [115, 281, 18, 66, 2],
    ]
    ids, labels, paddings = tokenizer.encode(["Hello!"], 7)
    assert (ids.tolist(), labels.tolist()) == ([[1, 115, 276, 18, 66, 2, 2]], [[115, 276, 18, 66, 2, 2, 2]])
    assert paddings.tolist() == [[0.0] * 5 + [1.0] * 2]
    assert tokenizer.decode(labels, [4]) == ["Hello!"]
    assert tokenizer.vocab_size == 2000


def test_the_stored_pairs_of_wmt_are_our_pieces(vocabularies):
    tokenizer = WpmTokenizer(vocab_filepath="wmt14_ende_wpm_32k_test.vocab")
    records = open_records(str(vocabularies.parent / "wmt" / "wmt14_ende_wpm_32k_doublebatch_test-000-001"))
    names = ("source_id", "target_label", "mono_source_id", "mono_target_label")
    examples = parse_examples(records.read(np.arange(len(records))), {name: Feature("int64") for name in names})
    rows = [example[name] for example in examples for name in names]
    known = [row for row in rows if tokenizer.unk_id not in row]  # the character that <unk> stands for is not stored
    assert (len(rows), len(known)) == (800, 708)
    width = max(map(len, rows))
    padded = np.array([[*row, *[0] * (width - len(row))] for row in known])
    ends = [len(row) - (row[-1] == tokenizer.eos_id) for row in known]
    texts = tokenizer.decode(padded, ends)
    for row, end, ids in zip(known, ends, tokenizer.encode_ragged(texts), strict=True):
        np.testing.assert_array_equal(ids, [*row[:end], tokenizer.eos_id])
    assert any("Wiederaufnahme der Sitzungsperiode" in text or "der" in text.split() for text in texts)


def test_dropout_stops_merging_at_random(vocabularies):
    text = ["international cooperation"] * 2000
    full = WpmTokenizer(vocab_filepath="wpm-ende-2k.voc").encode_ragged(text[:1])[0]
    lengths = {}
    for merge_prob in (0.0, 0.5, 0.9, 0.99):
        tokenizer = WpmTokenizer(vocab_filepath="wpm-ende-2k.voc", merge_prob=merge_prob)
        rows = tokenizer.encode_ragged(text, seed=3)
        lengths[merge_prob] = np.mean([len(row) for row in rows])
        padded, labels, paddings = tokenizer.encode(text, 40, seed=3)
        assert padded.shape == (2000, 40)
        assert labels[paddings == 0.0].tolist() == [i for row in rows for i in row.tolist()]
        assert set(tokenizer.decode(labels, (1 - paddings).sum(1).astype(int) - 1)) == {text[0]}
    assert lengths[0.0] == len("international cooperation") + 2  # a space less, a word's start more twice, and </s>
    assert lengths[0.0] > lengths[0.5] + 1.5 > lengths[0.9] + 3 > lengths[0.99] + 4
    assert lengths[0.99] >= len(full)


def test_the_number_of_merges_is_geometric(tmp_path):
    (tmp_path / "v").write_text("\n".join([*SPECIALS, WORD_START, *(WORD_START + "a" * i for i in range(1, 20)), "a"]))
    tokenizer = WpmTokenizer(vocab_filepath=str(tmp_path / "v"), merge_prob=0.7, append_eos=False)
    rows = tokenizer.encode_ragged(["a" * 19] * 20_000)
    merges = 20 - np.array([len(row) for row in rows])
    share = np.bincount(merges, minlength=20)[:8] / len(rows)
    np.testing.assert_allclose(share, 0.3 * 0.7 ** np.arange(8), atol=4 * 0.5 / np.sqrt(len(rows)))


def test_draws_are_a_function_of_a_strings_own_seed(vocabularies):
    tokenizer = WpmTokenizer(vocab_filepath="wpm-ende-2k.voc", merge_prob=0.5)
    text = ["Zusammenarbeit internationaler Organisationen"] * 8
    together = [row.tolist() for row in tokenizer.encode_ragged(text, seed=list(range(8)))]
    alone = [tokenizer.encode_ragged(text[:1], seed=[i])[0].tolist() for i in range(8)]
    assert together == alone
    assert together != [row.tolist() for row in tokenizer.encode_ragged(text, seed=list(range(8, 16)))]
    assert len({tuple(row) for row in together}) > 4
    one = [row.tolist() for row in tokenizer.encode_ragged(text, seed=5)]
    assert one == [row.tolist() for row in tokenizer.encode_ragged(text, seed=5)] and len(set(map(tuple, one))) > 4


def test_threads_share_a_vocabulary(vocabularies, monkeypatch):
    lines = (vocabularies.parent / "lm" / "lm1b_100.txt").read_text().splitlines()
    alone = WpmTokenizer(vocab_filepath="wpm_16k_librispeech.vocab").encode_ragged([line.lower() for line in lines])
    tokenizer = WpmTokenizer(vocab_filepath="wpm_16k_librispeech.vocab")
    tokenizer._merger.words.clear()
    monkeypatch.setattr(tokenizer._merger.words, "_max_words", 50)  # so that it is often full
    found, start = {}, threading.Barrier(4)

    def encode(i):
        start.wait(timeout=10)
        found[i] = tokenizer.encode_ragged([line.lower() for line in lines])

    threads = [threading.Thread(target=encode, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    for i in range(4):
        assert [row.tolist() for row in found[i]] == [row.tolist() for row in alone]


def test_one_process_loads_a_vocabulary_once(vocabularies):
    a, b = (WpmTokenizer(vocab_filepath="wpm-ende-2k.voc", append_eos=x) for x in (True, False))
    assert a._merger is b._merger


def test_a_changed_file_is_loaded_anew(root):
    (root / "v").write_text("<unk>\n<s>\n</s>\na\n")
    assert WpmTokenizer(vocab_filepath="v").vocab_size == 4
    (root / "v").write_text("<unk>\n<s>\n</s>\na\nb\n")
    assert WpmTokenizer(vocab_filepath="v").vocab_size == 5


def test_special_ids_must_agree(root):
    (root / "v").write_text("<s>\n</s>\n<unk>\na\n")
    with pytest.raises(RequestError, match="target_unk_id=0, but v has <unk> at 2; set target_unk_id=2"):
        WpmTokenizer(vocab_filepath="v").encode(["a"], 2)
    tokenizer = WpmTokenizer(vocab_filepath="v", target_unk_id=2, target_sos_id=0, target_eos_id=1)
    assert tokenizer.encode(["a"], 3)[0].tolist() == [[0, 2, 3]]


def test_bytes_that_are_no_text_are_unknown(vocabularies):
    tokenizer = WpmTokenizer(vocab_filepath="wpm-ende-2k.voc", append_eos=False)
    (ids,) = tokenizer.encode_ragged([b"\xff\xfe"])
    assert ids.tolist() == [3, 0, 0]


def test_merge_prob_is_a_probability():
    with pytest.raises(ValueError, match=r"merge_prob must be in \[0, 1\] \(got 1.5\)"):
        WpmTokenizer(vocab_filepath="v", merge_prob=1.5)
