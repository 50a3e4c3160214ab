"""Bucketed batches: every example once per epoch on any number of hosts, bounds respected, any batch by itself."""

import itertools

import numpy as np
import pytest
import sequence_toy
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.batches import Shard
from raylingvo.data.bucketed import BucketedBatches, OrderedBucketedBatches
from raylingvo.data.buckets import Buckets
from raylingvo.errors import RequestError

SMALL = settings(deadline=None, max_examples=40)
LENGTHS = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), min_size=1, max_size=40)
BUCKETS = Buckets(upper_bounds=(3, 6, 12), batch_sizes=(8, 4, 2))


def short_enough(lengths):
    return [i for i, pair in enumerate(lengths) if max(pair) <= 12]


def check_content(batch, source):
    bound = batch["src_ids"].shape[1]
    for row, i in enumerate(batch["id"].tolist()):
        length = source.length_NxC[i]
        assert max(length) <= bound
        if not batch["weight"][row]:
            assert (batch["src_paddings"][row] == 1).all()
            assert (batch["tgt_paddings"][row] == 1).all()
            continue
        for name, c in (("src", 0), ("tgt", 1)):
            np.testing.assert_array_equal(batch[f"{name}_paddings"][row], np.arange(bound) >= length[c])
        np.testing.assert_array_equal(batch["src_ids"][row, : length[0]], source.tokens(i, 0))
        np.testing.assert_array_equal(batch["tgt_labels"][row, : length[1]], source.tokens(i, 1))
        shifted = [sequence_toy.SOS, *source.tokens(i, 1)][: length[1]]
        np.testing.assert_array_equal(batch["tgt_ids"][row, : length[1]], shifted)
        assert (batch["tgt_ids"][row, length[1] :] == sequence_toy.EOS).all()


@SMALL
@given(LENGTHS, st.integers(0, 2**64 - 1))
def test_every_example_once_per_epoch_of_its_bucket(lengths, seed):
    source = sequence_toy.Sequences(lengths)
    members = short_enough(lengths)
    if not members:
        with pytest.raises(RequestError, match="no example is as short as the last bucket, 12"):
            BucketedBatches(source, BUCKETS, seed)
        return
    batches = BucketedBatches(source, BUCKETS, seed)
    assert batches.facts["num_too_long"] == len(lengths) - len(members)
    streams: dict[int, list[int]] = {}
    for k in range(60):
        batch = batches[k]
        bound = batch["src_ids"].shape[1]
        assert len(batch["id"]) == BUCKETS.batch_sizes[BUCKETS.upper_bounds.index(bound)]
        check_content(batch, source)
        streams.setdefault(bound, []).extend(batch["id"].tolist())
    for bound, ids in streams.items():
        lower = ([0, *BUCKETS.upper_bounds])[BUCKETS.upper_bounds.index(bound)]
        own = [i for i in members if (lower < max(lengths[i]) <= bound) or (max(lengths[i]) == 0 and lower == 0)]
        for epoch in (ids[i : i + len(own)] for i in range(0, len(ids), len(own))):
            assert len(set(epoch)) == len(epoch)
            assert set(epoch) <= set(own)


@SMALL
@given(LENGTHS, st.integers(0, 2**32), st.integers(0, 10**14))
def test_a_batch_needs_no_history(lengths, seed, k):
    source = sequence_toy.Sequences(lengths)
    if not short_enough(lengths):
        return
    far = BucketedBatches(source, BUCKETS, seed)[k]
    one = BucketedBatches(source, BUCKETS, seed)
    for other in (k + 1, 0, k):
        again = one[other]
    assert again.keys() == far.keys()
    for name in far:
        np.testing.assert_array_equal(again[name], far[name])


@SMALL
@given(LENGTHS)
def test_buckets_come_as_often_as_they_have_examples(lengths):
    source = sequence_toy.Sequences(lengths)
    members = short_enough(lengths)
    if not members:
        return
    batches = BucketedBatches(source, BUCKETS, 0)
    rows = {3: 0, 6: 0, 12: 0}
    for k in itertools.count():
        if sum(rows.values()) >= 20 * len(members):
            break
        batch = batches[k]
        rows[batch["src_ids"].shape[1]] += len(batch["id"])
    for (lower, upper), size in zip(itertools.pairwise((-1, 3, 6, 12)), BUCKETS.batch_sizes, strict=True):
        own = sum(lower < max(lengths[i]) <= upper for i in members)
        # To two batches, and what the last period still lacks of the other buckets.
        assert abs(rows[upper] - 20 * own) <= 2 * size + len(members) + 8


@SMALL
@given(LENGTHS, st.integers(0, 2**32), st.integers(0, 1000))
def test_hosts_share_each_batch(lengths, seed, k):
    source = sequence_toy.Sequences(lengths)
    if not short_enough(lengths):
        return
    whole = BucketedBatches(source, BUCKETS, seed)[k]
    parts = [BucketedBatches(source, BUCKETS, seed, Shard(index=h, count=2))[k] for h in range(2)]
    for name in whole:
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_a_batch_that_hosts_cannot_share_is_refused():
    with pytest.raises(RequestError, match="a batch of 2 cannot be shared evenly by 4 hosts"):
        BucketedBatches(sequence_toy.Sequences([(3, 3), (9, 9)]), BUCKETS, 0, Shard(index=0, count=4))


@SMALL
@given(LENGTHS, st.sampled_from([None, 1, 7]))
def test_evaluation_sees_each_example_once(lengths, max_examples):
    source = sequence_toy.Sequences(lengths)
    batches = OrderedBucketedBatches(source, BUCKETS, max_examples)
    seen = []
    for k in range(len(batches)):
        batch = batches[k]
        check_content(batch, source)
        seen += batch["id"][batch["weight"] == 1].tolist()
    assert sorted(seen) == [i for i in short_enough(lengths) if max_examples is None or i < max_examples]
    assert len(seen) == len(set(seen))


def test_batches_have_one_shape_for_each_bucket():
    source = sequence_toy.Sequences([(i % 12 + 1, i % 7 + 1) for i in range(100)])
    batches = BucketedBatches(source, BUCKETS, 0)
    assert {batches[k]["tgt_ids"].shape for k in range(100)} == {(8, 3), (4, 6), (2, 12)}
