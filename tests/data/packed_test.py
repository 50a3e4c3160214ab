"""Packed batches: nothing lost, nothing overlaps, any batch by itself, hosts share them."""

import numpy as np
import pytest
import sequence_toy
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.batches import Shard
from raylingvo.data.packed import OrderedPackedBatches, PackedBatches
from raylingvo.errors import RequestError

SMALL = settings(deadline=None, max_examples=40)
LENGTHS = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), min_size=1, max_size=40)
ROW = (16, 12)


def that_fit(lengths):
    return [i for i, (a, b) in enumerate(lengths) if 1 <= a <= ROW[0] and 1 <= b <= ROW[1]]


def segments(batch, source):
    """The examples of a batch, each checked to be whole in both columns."""
    found = []
    for row in range(len(batch["weight"])):
        segment = {name: batch[f"{name}_segment_ids"][row] for name in ("src", "tgt")}
        assert segment["src"].max() == segment["tgt"].max()
        assert batch["weight"][row] == (segment["src"].max() > 0)
        for name in segment:
            np.testing.assert_array_equal(batch[f"{name}_paddings"][row], segment[name] == 0)
        for number in range(1, segment["src"].max() + 1):
            places = {name: np.flatnonzero(segment[name] == number) for name in segment}
            source_tokens = batch["src_ids"][row, places["src"]]
            labels = batch["tgt_labels"][row, places["tgt"]]
            i = (int(source_tokens[0]) - 1000) // 100
            np.testing.assert_array_equal(source_tokens, source.tokens(i, 0))
            np.testing.assert_array_equal(labels, source.tokens(i, 1))
            np.testing.assert_array_equal(
                batch["tgt_ids"][row, places["tgt"]], [sequence_toy.SOS, *source.tokens(i, 1)[:-1]]
            )
            for name, place in places.items():
                np.testing.assert_array_equal(place, place[0] + np.arange(len(place)))  # in one piece
                np.testing.assert_array_equal(batch[f"{name}_segment_pos"][row, place], np.arange(len(place)))
            found.append(i)
    return found


@SMALL
@given(LENGTHS, st.integers(0, 2**64 - 1))
def test_every_example_once_per_epoch(lengths, seed):
    source = sequence_toy.Sequences(lengths)
    members = that_fit(lengths)
    if not members:
        with pytest.raises(RequestError, match="no example fits"):
            PackedBatches(source, 1, ROW, seed)
        return
    batches = PackedBatches(source, 1, ROW, seed)
    too_long = sum(a > ROW[0] or b > ROW[1] for a, b in lengths)
    assert batches.facts["num_too_long"] == too_long
    assert batches.facts["num_empty"] == len(lengths) - len(members) - too_long
    total = sum(sum(lengths[i]) for i in members)
    rows, k = 0, 0
    for _ in range(2):
        seen = []
        while len(seen) < len(members):
            seen += segments(batches[k], source)
            k += 1
        assert sorted(seen) == members
        rows = rows or k
    assert k == 2 * rows
    assert batches.facts["packing_fill"] == pytest.approx(total / (rows * sum(ROW)))


@SMALL
@given(LENGTHS, st.integers(0, 2**32), st.integers(0, 10**14))
def test_a_batch_needs_no_history_and_hosts_share_it(lengths, seed, k):
    source = sequence_toy.Sequences(lengths)
    if not that_fit(lengths):
        return
    used = PackedBatches(source, 4, ROW, seed)
    used[k + 3], used[0]
    whole = used[k]
    parts = [PackedBatches(source, 4, ROW, seed, Shard(index=h, count=2))[k] for h in range(2)]
    for name in whole:
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


@SMALL
@given(LENGTHS)
def test_evaluation_sees_each_example_once(lengths):
    source = sequence_toy.Sequences(lengths)
    if not that_fit(lengths):
        return
    batches = OrderedPackedBatches(source, 4, ROW)
    all_of_them = [batches[k] for k in range(len(batches))]
    assert {len(batch["weight"]) for batch in all_of_them} == {4}
    assert sorted(i for batch in all_of_them for i in segments(batch, source)) == that_fit(lengths)


def test_a_length_for_each_column():
    with pytest.raises(RequestError, match=r"packed_lengths must have a length for each of src, tgt \(got \[16\]\)"):
        PackedBatches(sequence_toy.Sequences([(3, 3)]), 1, (16,), 0)
