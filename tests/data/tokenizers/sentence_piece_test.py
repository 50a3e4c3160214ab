"""SentencePiece: the library's ids in our conventions, draws that repeat, and models that do not fit."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from raylingvo.data.tokenizers import SentencePieceTokenizer, sentence_piece
from raylingvo.errors import RequestError

MODEL = "en-1k.spm.model"


def test_sentences_of_the_reference(vocabularies):
    tokenizer = SentencePieceTokenizer(spm_model=MODEL)
    ids, labels, paddings = tokenizer.encode(["Hello world!", "why"], 8)
    assert labels.tolist() == [[136, 263, 36, 779, 185, 2, 0, 0], [109, 534, 2, 0, 0, 0, 0, 0]]
    assert ids.tolist() == [[1, 136, 263, 36, 779, 185, 2, 0], [1, 109, 534, 2, 0, 0, 0, 0]]
    assert (1 - paddings).sum(1).tolist() == [6, 3]
    assert tokenizer.decode(labels, [6, 2]) == ["Hello world!", "why"]
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id) == (1024, 0, 2)


def test_a_sentence_that_is_cut_loses_its_end(vocabularies):
    _, labels, paddings = SentencePieceTokenizer(spm_model=MODEL).encode(["Hello world!"], 3)
    assert (labels.tolist(), paddings.sum()) == ([[136, 263, 36]], 0)


def test_without_an_end(vocabularies):
    tokenizer = SentencePieceTokenizer(spm_model=MODEL, append_eos=False, pad_to_max_length=False)
    ids, labels, paddings = tokenizer.encode(["Hello world!", "why"], 8)
    assert labels.tolist() == [[136, 263, 36, 779, 185], [109, 534, 0, 0, 0]]
    assert ids.tolist() == [[1, 136, 263, 36, 779], [1, 109, 534, 0, 0]]
    assert paddings.tolist() == [[0.0] * 5, [0.0, 0.0, 1.0, 1.0, 1.0]]


@pytest.fixture(scope="module")
def library(test_data):
    return SentencePieceProcessor(model_file=str(test_data / "vocab" / MODEL))


@given(texts=st.lists(st.text(max_size=12), max_size=40))
@settings(deadline=None, max_examples=60)
def test_ids_are_the_librarys(test_data, library, texts):
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    tokenizer = SentencePieceTokenizer(spm_model=str(test_data / "vocab" / MODEL), append_eos=False)
    rows = [row.tolist() for row in tokenizer.encode_ragged(texts)]
    assert rows == [library.encode(text, out_type=int) for text in texts]
    width = max(map(len, rows), default=0)
    padded = np.array([row + [0] * (width - len(row)) for row in rows], np.int32).reshape(len(rows), width)
    assert tokenizer.decode(padded, [len(row) for row in rows]) == [library.decode(row) for row in rows]


@pytest.mark.parametrize("n", [1, sentence_piece._BATCH])
def test_text_that_is_no_text(vocabularies, n):
    tokenizer = SentencePieceTokenizer(spm_model=MODEL)
    rows = tokenizer.encode_ragged([b"\xff", "\ud800", "why", b"why"] * n)
    assert all(tokenizer.unk_id in row for row in rows[:2])
    assert rows[2].tolist() == rows[3].tolist() == [109, 534, 2]


def test_ids_that_are_none(vocabularies):
    tokenizer = SentencePieceTokenizer(spm_model=MODEL)
    assert tokenizer.decode([[109, 534, 9999, -1]], [4]) == tokenizer.decode([[109, 534, 0, 0]], [4])
    assert tokenizer.decode(np.zeros((0, 3), int), []) == []


@pytest.mark.parametrize("nbest_size", [-1, 8])
def test_draws_repeat_in_any_thread_and_any_batch(vocabularies, nbest_size):
    text = ["The quick brown fox jumps over the lazy dog."] * 12
    tokenizer = SentencePieceTokenizer(spm_model=MODEL, nbest_size=nbest_size, alpha=0.2)

    def draw(seed):
        return [tuple(row.tolist()) for row in tokenizer.encode_ragged(text, seed=seed)]

    expected, in_thread = draw(range(2**40, 2**40 + 12 * 2**35, 2**35)), []
    assert len(set(expected)) > 4
    seeds = list(range(2**40, 2**40 + 12 * 2**35, 2**35))
    assert [draw_one(tokenizer, text[0], seed) for seed in seeds] == expected
    for _ in range(2):
        thread = threading.Thread(target=lambda: in_thread.extend([draw(seeds), draw(seeds)]))
        thread.start()
        thread.join(timeout=30)
    assert in_thread == [expected] * 4
    assert draw(7) == draw(7) != draw(8)
    # Whatever is drawn, the text is the same.
    _, labels, paddings = tokenizer.encode(text, 60, seed=7)
    assert set(tokenizer.decode(labels, (1 - paddings).sum(1).astype(int))) == {text[0]}


def draw_one(tokenizer, text, seed):
    return tuple(tokenizer.encode_ragged([text], seed=[seed])[0].tolist())


@pytest.mark.parametrize("nbest_size", [0, 1])
def test_one_best_draws_nothing(vocabularies, nbest_size):
    tokenizer = SentencePieceTokenizer(spm_model=MODEL, nbest_size=nbest_size)
    assert [row.tolist() for row in tokenizer.encode_ragged(["why"] * 3, seed=3)] == [[109, 534, 2]] * 3


def test_an_old_library_cannot_repeat_draws(vocabularies, monkeypatch):
    monkeypatch.setattr("sentencepiece.__version__", "0.2.0")
    tokenizer = SentencePieceTokenizer(spm_model=MODEL, nbest_size=-1)
    with pytest.raises(RequestError, match=r"nbest_size=-1 needs sentencepiece >= 0.2.3 .*got 0.2.0.*pip install"):
        tokenizer.encode(["why"], 4)


def test_the_fingerprint_has_the_version_of_the_library(vocabularies, monkeypatch):
    tokenizer = SentencePieceTokenizer(spm_model=MODEL)
    before = tokenizer.fingerprint()
    assert MODEL in before
    monkeypatch.setattr("sentencepiece.__version__", "0.9.9")
    assert tokenizer.fingerprint() != before and "0.9.9" in tokenizer.fingerprint()


def test_special_ids_must_agree(vocabularies):
    with pytest.raises(RequestError, match=r"target_eos_id=1, but en-1k.spm.model has </s> at 2; set target_eos_id=2"):
        SentencePieceTokenizer(spm_model=MODEL, target_eos_id=1).encode(["why"], 4)


def test_a_file_that_is_no_model(root, capfd):
    (root / "x.model").write_bytes(b"not a model")
    with pytest.raises(RequestError, match=r"x.model is not a SentencePiece model: ") as error:
        SentencePieceTokenizer(spm_model="x.model").encode(["why"], 4)
    assert "\n" not in str(error.value)


def test_alpha_must_be_positive():
    with pytest.raises(ValueError, match=r"alpha must be > 0 \(got 0.0\)"):
        SentencePieceTokenizer(spm_model="m", alpha=0.0)
