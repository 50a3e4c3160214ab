"""Batches of pairs that are evaluated have the lines they were made from, character by character."""

import numpy as np
import pytest

from raylingvo.data.batches import Shard
from raylingvo.data.mixing import Curriculum, MixBatches, MixWithinBatches
from raylingvo.data.of_task import OfTask
from raylingvo.data.records import write_records
from raylingvo.data.text import TextPairs
from raylingvo.data.tokenizers import AsciiTokenizer

# Case and umlauts are unknown to the tokenizer: ids do not say them.
PAIRS = [(f"A Number {i}", f"Eine Zahl {i}" + " Ü" * (i % 9)) for i in range(23)]


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    write_records("pairs.tsv", [f"{a}\t{b}".encode() for a, b in PAIRS])
    for name, index in (("en.txt", 0), ("de.txt", 1)):
        write_records(name, [pair[index].encode() for pair in PAIRS])


def pairs(**settings):
    tokenizer = AsciiTokenizer()
    settings = {"records": "pairs.tsv", "source": "0", "target": "1", "bucket_bounds": (16, 24, 30)} | settings
    return TextPairs(source_tokenizer=tokenizer, target_tokenizer=tokenizer, **settings)


def texts(batches, prefix=""):
    """(source, target) by record of each real row; the others must have empty ones."""
    found = {}
    for k in range(len(batches)):
        batch = batches[k]
        for row, weight in enumerate(batch["weight"]):
            pair = batch[f"{prefix}src_text"][row], batch[f"{prefix}tgt_text"][row]
            if weight:
                found[int(batch.get("source_id", np.zeros(99))[row]), int(batch["id"][row])] = pair
            else:
                assert pair == ("", "")
    return found


# The tokenizer counts bytes, and one for the end.
SHORT = {(0, i): pair for i, pair in enumerate(PAIRS) if len(pair[1].encode()) < 30}


@pytest.mark.parametrize("files", [{}, {"records": "en.txt", "target_records": "de.txt", "source": "", "target": ""}])
def test_the_texts_of_records(files):
    dataset = pairs(**files)
    batches = dataset.eval_batches(4)
    assert texts(batches) == SHORT
    assert batches[0]["src_text"].dtype == batches[0]["tgt_text"].dtype == object
    assert texts(dataset.eval_batches(4, max_examples=5)) == {(0, i): PAIRS[i] for i in range(5)}
    for sample in batches.samples():
        assert sample.keys() == batches[0].keys()
    assert (len(batches), batches.num_examples) == (len(dataset.batch_in_order(dataset.open(), 4)), 23)


def test_neither_training_nor_packed_batches_have_them():
    assert not {"src_text", "tgt_text"} & pairs().train_batches(4, 0)[0].keys()
    packed = pairs(bucket_bounds=(), packed_lengths=(40, 60))
    assert not {"src_text", "tgt_text"} & packed.eval_batches(4)[0].keys()


def test_damaged_records_do_not_shift_them():
    lines = [f"{a}\t{b}".encode() for a, b in PAIRS]
    write_records("pairs.tsv", [*lines[:3], b"no target", *lines[3:]])
    found = texts(pairs(max_bad_records=1, bucket_bounds=(64,)).eval_batches(4))
    assert found == {(0, i + (i >= 3)): pair for i, pair in enumerate(PAIRS)}


def test_texts_in_mixtures():
    both = {(s, i): pair for s in (0, 1) for (_, i), pair in SHORT.items()}
    for mixture in (
        MixBatches(datasets=(pairs(), pairs()), weights=(1, 1)),
        Curriculum(datasets=(pairs(), pairs()), boundaries=(5,)),
    ):
        assert texts(mixture.eval_batches(4)) == both
    assert texts(OfTask(task="mt", dataset=pairs()).eval_batches(4), "mt/") == SHORT
    within = MixWithinBatches(datasets=(pairs(), pairs()), weights=(1, 1)).eval_batches(4)
    assert "src_text" not in within[0]  # its rows are of several files


def test_a_shard_has_the_texts_of_its_rows():
    whole = pairs().eval_batches(4)[0]
    for index in (0, 1):
        part = pairs().eval_batches(4, shard=Shard(index=index, count=2))[0]
        for name in ("id", "src_text", "tgt_text"):
            np.testing.assert_array_equal(part[name], whole[name][2 * index : 2 * index + 2])
    of_padding_alone = pairs().eval_batches(4, max_examples=1, shard=Shard(index=1, count=2))[0]
    assert of_padding_alone["src_text"].tolist() == of_padding_alone["tgt_text"].tolist() == ["", ""]
