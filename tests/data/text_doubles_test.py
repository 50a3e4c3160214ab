"""Pairs with other sentences: as TextPairs, and these twice, from a file of their own or the targets."""

import numpy as np
import pytest

from raylingvo.data.records import write_records
from raylingvo.data.text import TextPairs
from raylingvo.data.text_doubles import TextDoubles
from raylingvo.data.tokenizers import AsciiTokenizer
from raylingvo.errors import RequestError

PAIRS = [("hi", "na"), ("hello you", "hallo"), ("bye", "tschau")]
ASCII = AsciiTokenizer()
COMMON = {
    "records": "pairs.tsv",
    "source": "0",
    "target": "1",
    "source_tokenizer": ASCII,
    "target_tokenizer": ASCII,
    "bucket_bounds": (16,),
}


@pytest.fixture(autouse=True)
def data(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_records("pairs.tsv", [f"{a}\t{b}".encode() for a, b in PAIRS])


def texts(batch, column):
    lens = (batch[f"{column[: -len('_labels')]}_paddings"] == 0).sum(axis=1) - 1
    return ASCII.decode(batch[column], lens)


def test_without_other_sentences_they_are_the_targets():
    batch, pairs = (kind(**COMMON).eval_batches(3)[0] for kind in (TextDoubles, TextPairs))
    for name, values in pairs.items():
        np.testing.assert_array_equal(batch[name], values, err_msg=name)
    np.testing.assert_array_equal(batch["other_src_ids"], batch["other_tgt_labels"])
    np.testing.assert_array_equal(batch["other_tgt_ids"], batch["tgt_ids"])
    assert set(batch) - set(pairs) == {
        f"other_{name}" for name in ("src_ids", "src_paddings", "tgt_ids", "tgt_labels", "tgt_paddings")
    }


def test_other_sentences_go_round():
    write_records("mono.jsonl", [{"text": "eins"}, {"text": "zwei und drei"}])
    dataset = TextDoubles(**COMMON, mono_records="mono.jsonl", mono_field="text")
    batch = dataset.eval_batches(3)[0]
    assert texts(batch, "other_tgt_labels") == ["eins", "zwei und drei", "eins"]
    assert texts(batch, "tgt_labels") == ["na", "hallo", "tschau"]
    assert batch["tgt_text"].tolist() == ["na", "hallo", "tschau"]
    # What is kept is not used for another file.
    write_records("mono.txt", [b"vier"])
    other = TextDoubles(**COMMON, mono_records="mono.txt").eval_batches(3)[0]
    assert texts(other, "other_tgt_labels") == ["vier"] * 3


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"target_tokenizer must be source_tokenizer"):
        TextDoubles(**COMMON | {"target_tokenizer": AsciiTokenizer(append_eos=False)})
    with pytest.raises(RequestError, match=r"mono.txt"):
        TextDoubles(**COMMON, mono_records="mono.txt").check()
    write_records("mono.txt", [])
    with pytest.raises(RequestError, match=r"mono_records has no records"):
        TextDoubles(**COMMON, mono_records="mono.txt").open()
