"""Windows of a text: each token is a label as often as it should be."""

import numpy as np
import pytest

from raylingvo.data.text_windows import TextWindows
from raylingvo.data.tokenizers import CharacterTokenizer
from raylingvo.errors import RequestError

TEXT = "the quick brown fox\njumps\n"
ALPHABET = "\n abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def windows(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    (tmp_path / "a.txt").write_text(TEXT)
    return lambda **fields: TextWindows(path="a.txt", tokenizer=CharacterTokenizer(alphabet=ALPHABET), **fields)


def text(ids):
    return "".join(ALPHABET[i - 3] for i in ids)


def test_every_position_starts_a_window(windows):
    source = windows(length=8).open()
    assert len(source) == len(TEXT) - 8
    batch = source.take(np.array([3, 0, len(source) - 1]))
    assert [text(row) for row in batch["ids"]] == [TEXT[3:11], TEXT[:8], TEXT[-9:-1]]
    assert [text(row) for row in batch["labels"]] == [TEXT[4:12], TEXT[1:9], TEXT[-8:]]
    assert not batch["paddings"].any()
    assert batch["ids"].dtype == batch["labels"].dtype == np.int32
    assert batch["id"].tolist() == [3, 0, len(source) - 1]


def test_windows_as_packed_rows(windows):
    fields = {"length": 8, "stride": 8}
    plain, packed = (windows(as_packed=packed, **fields).open() for packed in (False, True))
    batch = packed.take(np.array([0, len(packed) - 1]))
    assert batch["segment_ids"].tolist() == [[1] * 8, [1, 0, 0, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(batch["segment_pos"], np.tile(np.arange(8), (2, 1)))
    for name, values in plain.take(np.array([0, len(packed) - 1])).items():
        np.testing.assert_array_equal(batch[name], values)


@pytest.mark.parametrize("length", [1, 7, 8, len(TEXT) - 1, len(TEXT), 100])
def test_each_token_is_predicted_once(windows, length):
    batches = windows(length=length, stride=length).eval_batches(3)
    labels = ""
    for k in range(len(batches)):
        batch = batches[k]
        for row in np.flatnonzero(batch["weight"]):
            labels += text(batch["labels"][row][batch["paddings"][row] == 0])
    assert labels == TEXT[1:]


def test_training_sees_each_window_once_in_an_epoch(windows):
    dataset = windows(length=8)
    batches = dataset.train_batches(3, seed=1)
    seen = [i for k in range(len(dataset.open()) // 3) for i in batches[k]["id"]]
    assert sorted(seen) == list(range(len(TEXT) - 8))
    assert seen != sorted(seen)


def test_what_is_refused(windows, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(RequestError, match=r"a.txt must have at least two tokens \(got 1\)"):
        windows(length=8).open()
    (tmp_path / "a.txt").unlink()
    with pytest.raises(RequestError, match=r"a.txt not found under .*; run: raylingvo data prepare x"):
        windows(length=8, prepare="x").check()
    with pytest.raises(ValueError, match=r"length must be >= 1 \(got 0\)"):
        windows(length=0)
    with pytest.raises(ValueError, match=r"stride must be <= length = 8, or tokens are left out \(got 9\)"):
        windows(length=8, stride=9)
