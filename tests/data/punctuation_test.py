"""The punctuator's pairs: a line, and what is left of it."""

import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylingvo.data.punctuation import PunctuatorLines, unpunctuated
from raylingvo.data.records import write_records
from raylingvo.data.tokenizers import AsciiTokenizer, WpmTokenizer

# Line 3 of lm1b_100.txt.
ELK = (
    "Elk calling -- a skill that hunters perfected long ago to lure game with the promise of a little romance "
    "-- is now its own sport ."
)
PLAIN = (
    "elk calling a skill that hunters perfected long ago to lure game with the promise of a little romance "
    "is now its own sport"
)


@pytest.fixture(autouse=True)
def data(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@given(st.text())
def test_what_is_left_has_no_capitals_no_punctuation_and_single_spaces(text):
    left = unpunctuated(text)
    assert set(left).isdisjoint(string.punctuation + string.ascii_uppercase)
    assert left == " ".join(left.split()) == unpunctuated(left)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (ELK, PLAIN),
        ("Don 't !\t U.S. \u00dcber-\u00a0gr\u00f6\u00dfe\n", "don t us \u00fcber gr\u00f6\u00dfe"),
        ("...", ""),
    ],
)
def test_examples(text, left):
    assert unpunctuated(text) == left


@pytest.mark.parametrize("field", ["", "text"])
def test_the_line_is_the_target_and_what_is_left_the_source(field):
    name = "lines.jsonl" if field else "lines.txt"
    lines = ["Hello, world!", "I am here."]
    write_records(name, [{"text": line} if field else line.encode() for line in lines])
    tokenizer = AsciiTokenizer()
    batch = PunctuatorLines(records=name, tokenizer=tokenizer, field=field, bucket_bounds=(20,)).eval_batches(2)[0]
    assert batch["src_text"].tolist() == ["hello world", "i am here"]
    assert batch["tgt_text"].tolist() == lines
    sides = (("src_ids", "src"), ("tgt_labels", "tgt"))
    lens = {side: (batch[f"{side}_paddings"] == 0).sum(axis=1) - 1 for _, side in sides}
    assert tokenizer.decode(batch["src_ids"], lens["src"]) == ["hello world", "i am here"]
    assert tokenizer.decode(batch["tgt_labels"], lens["tgt"]) == ["hello, world!", "i am here."]
    assert (batch["tgt_ids"][:, 0] == tokenizer.sos_id).all()


@pytest.mark.data
def test_the_third_line_of_lm1b(test_data):
    """Lingvo's own test has a vocabulary of the Brown corpus; the relation of source and target is the same."""
    tokenizer = WpmTokenizer(vocab_filepath=str(test_data / "vocab/wmt14_ende_wpm_32k_test.vocab"))
    dataset = PunctuatorLines(
        records=str(test_data / "lm/lm1b_100.txt"),
        tokenizer=tokenizer,
        bucket_bounds=(20, 40),
    )
    source, target = dataset.open().take(np.array([2]))
    expected_source, expected_target = tokenizer.encode_ragged([PLAIN, ELK])
    np.testing.assert_array_equal(source.token_T, expected_source)
    np.testing.assert_array_equal(target.token_T, expected_target)
    batches = dataset.eval_batches(1)
    for k in range(len(batches)):
        assert batches[k]["src_ids"].shape[1] in (20, 40)
    assert any(batches[k]["id"][0] == 2 for k in range(len(batches)))
