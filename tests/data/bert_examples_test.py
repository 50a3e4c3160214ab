"""MLPerf's examples are whole again, and packed."""

import numpy as np
import pytest

from raylingvo.data.bert_examples import BertExamples
from raylingvo.data.records import write_records
from raylingvo.data.tf_example import encode_example
from raylingvo.errors import RequestError

CLS, SEP, MASK = 101, 102, 103


@pytest.fixture(autouse=True)
def data(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def record(first, second, masked, length=16):
    """A pair of texts, of which the positions `masked` are masked; two places for masks are not used."""
    ids = [CLS, *first, SEP, *second, SEP]
    hidden = [MASK if i in masked else token for i, token in enumerate(ids)]
    rest = [0] * (length - len(ids))
    return encode_example(
        {
            "input_ids": hidden + rest,
            "input_mask": [1] * len(ids) + rest,
            "masked_lm_positions": [*masked, 0, 0],
            "masked_lm_ids": [*(ids[i] for i in masked), 0, 0],
            "masked_lm_weights": [1.0] * len(masked) + [0.0, 0.0],
        }
    )


def test_masked_tokens_are_put_back_and_the_inner_separator_is_left_out():
    write_records("bert.tfrecord", [record([7, 8], [9], [1, 4]), record([500], [600, 601, 602], [])])
    batch = BertExamples(records="bert.tfrecord", bucket_bounds=(8,)).eval_batches(2)[0]
    rows = [row[p == 0].tolist() for row, p in zip(batch["ids"], batch["paddings"], strict=True)]
    assert rows == [[CLS, 7, 8, 9, SEP], [CLS, 500, 600, 601, 602, SEP]]


def test_they_can_be_packed():
    write_records("bert.tfrecord", [record([7, 8], [9], [1]), record([10], [11], [2])])
    batch = BertExamples(records="bert.tfrecord", packed_lengths=(12,)).train_batches(1, 0)[0]
    assert sorted(batch) == ["ids", "paddings", "segment_ids", "segment_pos", "weight"]
    assert sorted(np.bincount(batch["segment_ids"][0]).tolist()) == [3, 4, 5]


def test_a_position_outside_is_a_bad_record():
    features = {"input_ids": [CLS, SEP], "input_mask": [1, 1], "masked_lm_positions": [2]}
    outside = encode_example({**features, "masked_lm_ids": [7], "masked_lm_weights": [1.0]})
    write_records("bert.tfrecord", [record([7], [8], [1]), outside])
    with pytest.raises(RequestError, match=r"bert\.tfrecord: record 1.* all masked positions \(got 2\)"):
        BertExamples(records="bert.tfrecord", bucket_bounds=(8,)).open()
