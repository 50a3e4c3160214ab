"""Mixtures: shares by weight, nothing lost of any source, any batch by itself, evaluation of each example once."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
import sequence_toy
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.batches import Shard
from raylingvo.data.images import Digits
from raylingvo.data.mixing import Curriculum, MixBatches, MixWithinBatches
from raylingvo.data.order import part_seed
from raylingvo.data.pipeline import TrainInput
from raylingvo.data.sequence_dataset import SequenceDataset
from raylingvo.errors import RequestError

SMALL = settings(deadline=None, max_examples=20)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(SequenceDataset):
    """`number` sequences of 1 to 12 tokens, told apart by `first`."""

    number: int
    first: int = 0

    def open(self):
        return sequence_toy.Sequences([(i % 12 + 1, i % 7 + 1) for i in range(self.number)], self.first)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths(SequenceDataset):
    """Sequences of given lengths."""

    lengths: tuple[int, ...]

    def open(self):
        return sequence_toy.Sequences([(n, 1) for n in self.lengths])


SEQUENCES = tuple(Toy(number=n, first=f, bucket_bounds=(6, 12)) for n, f in ((30, 0), (50, 1000)))
NUMBERS = (toy.Numbers(size=30), toy.Numbers(size=50))


@pytest.mark.parametrize("datasets", [SEQUENCES, NUMBERS])
@SMALL
@given(weight=st.floats(0.05, 0.95))
def test_shares_within_batches_converge_to_the_weights(datasets, weight):
    mixed = MixWithinBatches(datasets=datasets, weights=(weight, 1 - weight))
    batches = mixed.train_batches(100, 0)
    drawn = np.concatenate([batches[k]["source_id"] for k in range(120)])
    assert abs((drawn == 0).mean() - weight) < 0.02


def test_every_source_goes_through_its_own_epochs():
    batches = MixWithinBatches(datasets=NUMBERS, weights=(3, 1)).train_batches(16, 7)
    drawn = [batches[k] for k in range(100)]
    source = np.concatenate([batch["source_id"] for batch in drawn])
    ids = np.concatenate([batch["id"] for batch in drawn])
    for s, size in ((0, 30), (1, 50)):
        own = ids[source == s]
        for start in range(0, len(own) - size + 1, size):
            assert sorted(own[start : start + size]) == list(range(size))


def test_the_content_is_of_the_source_that_is_named():
    batches = MixWithinBatches(datasets=SEQUENCES, weights=(1, 1)).train_batches(8, 0)
    for k in range(10):
        batch = batches[k]
        first = np.where(batch["source_id"] == 0, 0, 1000)
        np.testing.assert_array_equal((batch["src_ids"][:, 0] - 1000) // 100, batch["id"] + first)


@pytest.mark.parametrize("datasets", [SEQUENCES, NUMBERS])
def test_whole_batches_by_weight(datasets):
    batches = MixBatches(datasets=datasets, weights=(1, 4)).train_batches(4, 3)
    drawn = [batches[k] for k in range(10_000)] if datasets is NUMBERS else [batches[k] for k in range(1000)]
    source = np.array([batch["source_id"][0] for batch in drawn])
    assert all((batch["source_id"] == batch["source_id"][0]).all() for batch in drawn)
    assert abs((source == 0).mean() - 0.2) < 0.03
    ids = np.concatenate([batch["id"] for batch in drawn[:200] if batch["source_id"][0] == 0])
    alone = datasets[0].train_batches(4, part_seed(3, 0))
    np.testing.assert_array_equal(ids, np.concatenate([alone[k]["id"] for k in range(len(ids) // 4)]))


def test_a_curriculum_changes_at_its_boundaries():
    batches = Curriculum(datasets=(*NUMBERS, NUMBERS[0]), boundaries=(3, 5)).train_batches(4, 1)
    assert [int(batches[k]["source_id"][0]) for k in range(8)] == [0, 0, 0, 1, 1, 2, 2, 2]
    alone = [(*NUMBERS, NUMBERS[0])[s].train_batches(4, part_seed(1, s)) for s in range(3)]
    for k, (s, n) in {0: (0, 0), 2: (0, 2), 3: (1, 0), 5: (2, 0), 7: (2, 2)}.items():
        np.testing.assert_array_equal(batches[k]["id"], alone[s][n]["id"])


def test_too_long_examples_and_rare_lengths_do_not_change_the_shares():
    long = Lengths(lengths=(3,) * 5000 + (99,) * 5000, bucket_bounds=(6, 12))
    rare = Lengths(lengths=(3,) * 1 + (9,) * 50_000, bucket_bounds=(6, 12))
    batches = MixWithinBatches(datasets=(long, rare), weights=(1, 1)).train_batches(100, 0)
    assert batches.facts["num_too_long"] == 5000
    drawn = np.concatenate([batches[k]["source_id"] for k in range(2000)])
    assert abs((drawn == 0).mean() - 0.5) < 0.01


def test_a_dataset_without_a_short_enough_example_is_named():
    mixture = MixWithinBatches(datasets=(SEQUENCES[0], Lengths(lengths=(99,), bucket_bounds=(6, 12))), weights=(1, 1))
    with pytest.raises(RequestError, match="dataset 1: no example is as short as the last bucket, 12"):
        mixture.train_batches(4, 0)


def test_datasets_of_other_fields_are_refused():
    mixture = MixWithinBatches(datasets=(NUMBERS[0], Digits(split="test")), weights=(1, 1))
    with pytest.raises(RequestError, match="datasets 0 and 1 cannot be mixed within batches"):
        mixture.train_batches(4, 0)


@pytest.mark.parametrize(
    "mixture", [MixBatches(datasets=NUMBERS, weights=(1, 1)), Curriculum(datasets=NUMBERS, boundaries=(1,))]
)
def test_parts_have_orders_of_their_own(mixture):
    same = dataclasses.replace(mixture, datasets=(NUMBERS[0],) * 2)
    drawn = [same.train_batches(30, 0)[k] for k in range(20)]
    orders = {tuple(batch["id"]) for batch in drawn}
    assert len(orders) == 20


MIXTURES = [
    MixWithinBatches(datasets=SEQUENCES, weights=(1, 2)),
    MixWithinBatches(datasets=NUMBERS, weights=(1, 2)),
    MixBatches(datasets=SEQUENCES, weights=(1, 2)),
    Curriculum(datasets=NUMBERS, boundaries=(50,)),
]


@pytest.mark.parametrize("mixture", MIXTURES)
@SMALL
@given(k=st.integers(0, 10**12))
def test_a_batch_needs_no_history_and_hosts_share_it(mixture, k):
    whole = mixture.train_batches(4, 9)[k]
    parts = [mixture.train_batches(4, 9, Shard(index=h, count=2))[k] for h in range(2)]
    for name in whole:
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


PACKED = dataclasses.replace(SEQUENCES[0], bucket_bounds=(), packed_lengths=(20, 20))


@pytest.mark.parametrize("dataset", [*MIXTURES, SEQUENCES[0], PACKED])
def test_a_restored_input_goes_on_from_a_small_state(dataset):
    def opened():
        return contextlib.closing(TrainInput(dataset.train_batches(4, 5)))

    with opened() as whole, opened() as resumed:
        for _ in range(7):
            next(whole)
        state = json.loads(json.dumps(whole.state()))
        assert len(json.dumps(state)) < 1000
        resumed.restore(state)
        for _ in range(5):
            expected, found = next(whole), next(resumed)
            assert expected.keys() == found.keys()
            for name in expected:
                np.testing.assert_array_equal(expected[name], found[name])


@pytest.mark.parametrize(
    ("dataset", "other"),
    [
        (SEQUENCES[0], dataclasses.replace(SEQUENCES[0], bucket_bounds=(7, 12))),
        (SEQUENCES[0], dataclasses.replace(SEQUENCES[0], bucket_batch_sizes=(4, 5))),
        (PACKED, dataclasses.replace(PACKED, packed_lengths=(20, 21))),
        (Lengths(lengths=(1, 2), bucket_bounds=(3,)), Lengths(lengths=(2, 1), bucket_bounds=(3,))),
        *((mixture, dataclasses.replace(mixture, weights=(2, 1))) for mixture in MIXTURES[:3]),
        (MIXTURES[3], dataclasses.replace(MIXTURES[3], boundaries=(51,))),
        (MIXTURES[1], dataclasses.replace(MIXTURES[1], datasets=(toy.Numbers(size=40), toy.Numbers(size=40)))),
    ],
)
def test_a_state_of_another_stream_is_refused(dataset, other):
    with contextlib.closing(TrainInput(dataset.train_batches(4, 5))) as train_input:
        state = train_input.state()
    with (
        contextlib.closing(TrainInput(other.train_batches(4, 5))) as train_input,
        pytest.raises(RequestError, match="cannot resume the training input"),
    ):
        train_input.restore(state)


@pytest.mark.parametrize("dataset", [*MIXTURES, SEQUENCES[0], PACKED])
def test_samples_are_of_all_shapes_that_come(dataset):
    def shapes(batches):
        return {tuple((name, x.shape, str(x.dtype)) for name, x in sorted(batch.items())) for batch in batches}

    for batches in (dataset.train_batches(4, 0), dataset.eval_batches(4)):
        number = min(len(batches), 300)
        assert shapes(batches[k] for k in range(number)) <= shapes(batches.samples())
        assert len(list(batches.samples())) <= 4


@pytest.mark.parametrize("mixture", MIXTURES)
def test_evaluation_sees_every_example_once(mixture):
    batches = mixture.eval_batches(7)
    seen = []
    for k in range(len(batches)):
        batch = batches[k]
        real = batch["weight"] == 1
        seen += zip(batch["source_id"][real].tolist(), batch["id"][real].tolist(), strict=True)
    assert len(seen) == len(set(seen)) == 80


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixBatches(datasets=(), weights=()), "datasets must have at least one"),
        (lambda: MixBatches(datasets=NUMBERS, weights=(1, 0)), "finite numbers > 0"),
        (lambda: MixWithinBatches(datasets=NUMBERS, weights=(0, 0)), "finite numbers > 0"),
        (lambda: MixBatches(datasets=NUMBERS, weights=(1,)), "weights must have 2 numbers for 2 datasets"),
        (lambda: Curriculum(datasets=NUMBERS, boundaries=()), "boundaries must have 1 numbers for 2 datasets"),
        (lambda: Curriculum(datasets=(*NUMBERS, NUMBERS[0]), boundaries=(5, 5)), "increasing"),
        (lambda: MixWithinBatches(datasets=(NUMBERS[0], SEQUENCES[0]), weights=(1, 1)), "all of examples of one shape"),
        (
            lambda: MixWithinBatches(
                datasets=(SEQUENCES[0], dataclasses.replace(SEQUENCES[1], bucket_bounds=(7, 12))), weights=(1, 1)
            ),
            "same buckets",
        ),
        (
            lambda: MixWithinBatches(datasets=(Toy(number=3, packed_lengths=(12, 12)),) * 2, weights=(1, 1)),
            "packed ones cannot be mixed within batches",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
