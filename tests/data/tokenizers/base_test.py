"""Padding is what it is defined to be, for all options; the ragged and flat forms agree; configs are plain data."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo import config
from raylingvo.data.tokenizers import (
    AsciiTokenizer,
    BpeTokenizer,
    SentencePieceTokenizer,
    T2tSubwordTokenizer,
    Tokenizer,
    VocabFileTokenizer,
    WpmTokenizer,
)
from raylingvo.errors import RequestError

SOS, EOS, UNK = 101, 102, 103


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bytes(Tokenizer):
    """A byte is its value."""

    vocab_size = 256
    sos_id = SOS
    eos_id = EOS
    unk_id = UNK

    def _tokens(self, strings, seed_N):
        lens = np.array([len(s) for s in strings], np.int64)
        return np.frombuffer(b"".join(strings), np.uint8).astype(np.int32), lens

    def _decode(self, rows):
        return [bytes(row).decode("latin1") for row in rows]


class KeepsEos(Bytes):
    _keeps_eos = True


class LeavesNoRoom(Bytes):
    _leaves_room_for_eos = False


class PadsWithUnk(LeavesNoRoom):
    pad_id = UNK


KINDS = [Bytes, KeepsEos, LeavesNoRoom, PadsWithUnk]
strings = st.lists(st.binary(max_size=12), max_size=6)


def expected(tokenizer, texts, max_length):
    """By the definition, a position at a time."""
    all_ids, all_labels, all_paddings, needed = [], [], [], [0]
    for text in texts:
        tokens = list(text)[: max_length - (1 if tokenizer._keeps_eos else 0)]
        if tokenizer.append_eos:
            tokens.append(EOS)
        labels = (tokens + [tokenizer.pad_id] * max_length)[:max_length]
        real = min(len(tokens), max_length)
        needed.append(real)
        if tokenizer._leaves_room_for_eos and not tokenizer.append_eos:
            needed.append(min(real + 1, max_length))
        all_ids.append([SOS, *labels[:-1]])
        all_labels.append(labels)
        all_paddings.append([0.0] * real + [1.0] * (max_length - real))
    width = max_length if tokenizer.pad_to_max_length else max(needed)
    arrays = (np.array(x).reshape(len(texts), max_length)[:, :width] for x in (all_ids, all_labels, all_paddings))
    return [a.astype(dtype) for a, dtype in zip(arrays, (np.int32, np.int32, np.float32), strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@given(texts=strings, max_length=st.integers(1, 15), append_eos=st.booleans(), pad=st.booleans())
@settings(deadline=None, max_examples=60)
def test_padding_is_as_defined(kind, texts, max_length, append_eos, pad):
    tokenizer = kind(append_eos=append_eos, pad_to_max_length=pad)
    for got, want in zip(tokenizer.encode(texts, max_length), expected(tokenizer, texts, max_length), strict=True):
        np.testing.assert_array_equal(got, want, strict=True)


@given(texts=strings, append_eos=st.booleans())
@settings(deadline=None, max_examples=60)
def test_ragged_and_flat_are_the_labels_that_count(texts, append_eos):
    tokenizer = Bytes(append_eos=append_eos)
    rows = tokenizer.encode_ragged(texts)
    assert [row.tolist() for row in rows] == [[*text, EOS] if append_eos else [*text] for text in texts]
    assert all(row.dtype == np.int32 for row in rows)
    flat, lens = tokenizer.encode_flat(texts)
    assert flat.tolist() == [i for row in rows for i in row.tolist()] and lens.tolist() == [len(row) for row in rows]
    _, labels, paddings = tokenizer.encode(texts, 20)
    assert labels[paddings == 0.0].tolist() == flat.tolist()


def test_rows_can_be_written_to():
    for append_eos in (True, False):
        AsciiTokenizer(append_eos=append_eos).encode_ragged(["ab", "c"])[0][:] = 0


def test_decode_takes_what_lens_says():
    assert Bytes().decode([[97, 98, 99], [100, 101, 102]], [2, -3]) == ["ab", ""]
    assert Bytes().decode(np.zeros((0, 4), np.int32), np.zeros(0, np.int32)) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.encode(["a"], 0), r"max_length must be >= 1 \(got 0\)"),
        (lambda t: t.encode("abc", 4), r"strings must be a sequence of texts \(got one: 'abc'\)"),
        (lambda t: t.encode_ragged(b"abc"), r"strings must be a sequence of texts"),
        (lambda t: t.encode(["a", "b"], 4, seed=[1]), r"seed must be one number, or one for each of the 2 strings"),
        (lambda t: t.decode([1, 2], [1]), r"ids must be \[N, L\] and lens \[N\] \(got \[2\] and \[1\]\)"),
        (lambda t: t.decode([[1, 2]], [1, 1]), r"ids must be \[N, L\] and lens \[N\]"),
        (lambda t: t.decode([[1, 2]], [3]), r"lens must be <= 2, the width of ids \(got 3\)"),
    ],
)
def test_wrong_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call(AsciiTokenizer())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    tokenizer: Tokenizer


CONFIGS = [
    AsciiTokenizer(append_eos=False),
    VocabFileTokenizer(token_vocab_filepath="a.txt", tokens_delimiter="|,", load_token_ids_from_vocab=False),
    VocabFileTokenizer(ngram_vocab_filepath="n.txt", ngram_separator="."),
    BpeTokenizer(codes_filepath="c", words_to_ids_filepath="w", target_sos_id=3),
    WpmTokenizer(vocab_filepath="w", merge_prob=0.5, pad_to_max_length=False),
    SentencePieceTokenizer(spm_model="gs://bucket/s.model", nbest_size=-1, alpha=0.1),
    T2tSubwordTokenizer(vocab_filepath="t"),
]


@pytest.mark.parametrize("tokenizer", CONFIGS, ids=lambda t: type(t).__name__)
def test_configs_stand_in_yaml_and_can_be_pickled(tokenizer):
    holder = Holder(tokenizer=tokenizer)
    assert config.load(config.dump(holder), Holder) == holder
    assert pickle.loads(pickle.dumps(tokenizer)) == tokenizer
    with pytest.raises(dataclasses.FrozenInstanceError):
        tokenizer.append_eos = False


def test_what_was_loaded_is_not_pickled(vocabularies):
    tokenizer = WpmTokenizer(vocab_filepath="wpm-ende-2k.voc")
    small = pickle.dumps(tokenizer)
    tokenizer.encode_ragged(["Hello"])
    assert pickle.dumps(tokenizer) == small
    for other in (pickle.loads(small), copy.deepcopy(tokenizer), dataclasses.replace(tokenizer)):
        assert "_merger" not in vars(other)
        assert other.encode_ragged(["Hello"])[0].tolist() == tokenizer.encode_ragged(["Hello"])[0].tolist()


@pytest.mark.parametrize("tokenizer", CONFIGS[1:5] + CONFIGS[6:], ids=lambda t: type(t).__name__)
def test_a_missing_file_is_named(root, tokenizer):
    for call in (tokenizer.check, tokenizer.fingerprint, lambda: tokenizer.vocab_size):
        with pytest.raises(RequestError, match=f"not found under RAYLINGVO_DATA={root}") as error:
            call()
        assert "\n" not in str(error.value)


def test_the_fingerprint_changes_with_the_file(root):
    tokenizer = WpmTokenizer(vocab_filepath="w.txt")
    (root / "w.txt").write_text("<unk>\n<s>\n</s>\na\n")
    before = tokenizer.fingerprint()
    assert before == tokenizer.fingerprint() and "w.txt" in before
    (root / "w.txt").write_text("<unk>\n<s>\n</s>\na\nb\n")
    assert tokenizer.fingerprint() != before
    assert AsciiTokenizer().fingerprint() == ""


def test_a_tokenizer_follows_its_file(root):
    tokenizer = WpmTokenizer(vocab_filepath="w.txt")
    for pieces, expected in (("\u2581\na", [3, 4, 2]), ("\u2581\nb\na", [3, 5, 2])):
        (root / "w.txt").write_text(f"<unk>\n<s>\n</s>\n{pieces}\n")
        assert tokenizer.encode_ragged(["a"])[0].tolist() == expected
        assert tokenizer.vocab_size == 3 + len(pieces.split())
    (root / "w.txt").unlink()
    with pytest.raises(RequestError, match="not found"):
        tokenizer.encode_ragged(["a"])


def test_which_draw_at_random():
    random = [tokenizer for tokenizer in CONFIGS if tokenizer.is_random]
    assert random == [CONFIGS[4], CONFIGS[5]]
    assert not WpmTokenizer(vocab_filepath="w").is_random
    assert not SentencePieceTokenizer(spm_model="s", nbest_size=1).is_random
