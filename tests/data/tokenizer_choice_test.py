"""Tokenizers as one writes them on a command line."""

import numpy as np
import pytest

from raylingvo.data.tokenizer_choice import tokenizer_from_text
from raylingvo.data.tokenizers import AsciiTokenizer
from raylingvo.data.vocabulary import train_vocab
from raylingvo.errors import RequestError


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("kind", ["wpm", "sentencepiece", "words"])
def test_files_are_relative_to_the_data(kind, data):
    train_vocab(kind, ["a rose is a rose", "is a rose"] * 20, 30, data / "v")
    ids = tokenizer_from_text(f"{kind}:v").encode_ragged(["a rose"])
    assert len(ids) == 1
    assert (np.asarray(ids[0]) > 0).all()


def test_subwords_of_tensor2tensor(data):
    (data / "v").write_text("'<pad>_'\n'<EOS>_'\n'a_'\n'b'\n'_'\n")
    assert tokenizer_from_text("t2t:v").encode_ragged(["a b"])[0].tolist() == [2, 3, 4, 1]


def test_ascii_needs_no_file():
    assert tokenizer_from_text("ascii") == AsciiTokenizer()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spm:x", r"--tokenizer must be sentencepiece:FILE, .* \(got 'spm:x'\)"),
        ("wpm", r"\(got 'wpm'\)"),
        ("wpm:", r"\(got 'wpm:'\)"),
        ("ascii:x", r"\(got 'ascii:x'\)"),
        ("wpm:nowhere.vocab", r"nowhere\.vocab"),
    ],
)
def test_wrong_requests_are_named(text, message):
    with pytest.raises(RequestError, match=message):
        tokenizer_from_text(text)
