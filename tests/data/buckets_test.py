"""Length buckets: inclusive bounds, and those that pad least."""

import gzip
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data import buckets as buckets_module
from raylingvo.data.buckets import Buckets, learn_bounds, suggest

examples = settings(max_examples=100, deadline=None)
length_lists = st.lists(st.integers(0, 12), min_size=1, max_size=30)


def with_bounds(*bounds):
    return Buckets(upper_bounds=bounds, batch_sizes=(1,) * len(bounds))


def padded(lengths, bounds):
    """The plain loop: slots taken."""
    return sum(next(bound for bound in bounds if length <= bound) for length in lengths)


def least_padded(lengths, num_buckets, last_bound, multiple_of):
    """By trying every choice of bounds."""
    candidates = range(multiple_of, last_bound, multiple_of)
    return min(
        padded(lengths, (*bounds, last_bound))
        for k in range(num_buckets)
        for bounds in itertools.combinations(candidates, k)
    )


@examples
@given(length_lists, st.sets(st.integers(1, 12), min_size=1))
def test_every_length_is_in_the_first_bucket_that_holds_it(lengths, bounds):
    bounds = sorted(bounds)
    buckets = with_bounds(*bounds)
    bucket = buckets.bucket_of(np.array(lengths))
    assert bucket.dtype == np.int64
    for length, k in zip(lengths, bucket.tolist(), strict=True):
        assert k == next((i for i, bound in enumerate(bounds) if length <= bound), -1)
    kept = [length for length in lengths if length <= bounds[-1]]
    assert buckets.padded_tokens(np.array(lengths)) == padded(kept, bounds)
    if kept:
        assert buckets.padding_waste(np.array(lengths)) == pytest.approx(1 - sum(kept) / padded(kept, bounds))


def test_bounds_are_inclusive():
    np.testing.assert_array_equal(with_bounds(4, 8).bucket_of(np.array([0, 4, 5, 8, 9])), [0, 0, 1, 1, -1])


def test_waste():
    assert with_bounds(4, 8).padding_waste(np.array([4, 8, 4])) == 0
    assert with_bounds(4, 8).padding_waste(np.array([2, 6, 99])) == pytest.approx(4 / 12)
    assert with_bounds(4).padding_waste(np.array([5, 6])) == 0
    assert with_bounds(4).padding_waste(np.array([], np.int64)) == 0


@examples
@given(length_lists, st.integers(1, 5), st.integers(1, 3))
def test_learned_bounds_pad_least(lengths, num_buckets, multiple_of):
    bounds = learn_bounds(np.bincount(lengths), num_buckets, multiple_of=multiple_of)
    last_bound = max(-(-max(lengths) // multiple_of), 1) * multiple_of
    assert 1 <= len(bounds) <= num_buckets
    assert bounds[-1] == last_bound
    assert all(bound % multiple_of == 0 for bound in bounds)
    assert list(bounds) == sorted(set(bounds))
    assert padded(lengths, bounds) == least_padded(lengths, num_buckets, last_bound, multiple_of)


@examples
@given(length_lists, st.integers(1, 4), st.integers(1, 14))
def test_the_last_bound_is_kept(lengths, num_buckets, last_bound):
    bounds = learn_bounds(np.bincount(lengths), num_buckets, last_bound=last_bound)
    assert bounds[-1] == last_bound
    assert len(bounds) <= num_buckets
    kept = [length for length in lengths if length <= last_bound]
    assert padded(kept, bounds) == least_padded(kept, num_buckets, last_bound, 1)


def test_bounds_of_no_examples():
    assert learn_bounds(np.array([], np.int64), 3, last_bound=7) == (7,)
    assert learn_bounds(np.zeros(5, np.int64), 3, last_bound=7) == (7,)


@examples
@given(st.lists(st.integers(1, 100), min_size=1, max_size=80), st.integers(1, 4))
def test_candidates_are_merged_only_if_they_are_many(lengths, num_buckets):
    histogram = np.bincount(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets_module, "_MAX_CANDIDATES", 10)
        bounds = learn_bounds(histogram, num_buckets, last_bound=120)
    assert bounds[-1] == 120
    assert len(bounds) <= num_buckets
    exact = learn_bounds(histogram, num_buckets, last_bound=120)
    assert padded(lengths, bounds) >= padded(lengths, exact)
    if len(set(lengths)) <= 10:
        assert bounds == exact


def test_thousands_of_lengths():
    lengths = np.random.default_rng(0).lognormal(7, 1, 100_000).astype(np.int64)
    buckets = suggest(lengths, 2**17, 16)
    assert len(buckets.upper_bounds) == 16
    assert buckets.upper_bounds[-1] == lengths.max()
    # Sixteen buckets of as many examples each.
    quantiles = with_bounds(*np.quantile(lengths, np.arange(1, 17) / 16, method="higher").tolist())
    assert buckets.padding_waste(lengths) < 0.16 < quantiles.padding_waste(lengths)


@examples
@given(length_lists, st.integers(1, 100), st.integers(1, 5), st.integers(1, 4))
def test_suggested_batches_are_of_the_wanted_size(lengths, tokens_per_batch, num_buckets, multiple_of):
    buckets = suggest(np.array(lengths), tokens_per_batch, num_buckets, multiple_of)
    assert buckets.upper_bounds == learn_bounds(np.bincount(lengths), num_buckets, multiple_of=multiple_of)
    assert (buckets.bucket_of(np.array(lengths)) >= 0).all()
    for bound, size in zip(buckets.upper_bounds, buckets.batch_sizes, strict=True):
        assert type(bound) is type(size) is int  # as a config is
        assert size == 1 or size * bound <= tokens_per_batch < (size + 1) * bound


@pytest.mark.parametrize(
    ("bounds", "sizes", "message"),
    [
        ((), (), r"upper_bounds must be one or more, >= 1 and increasing \(got \(\)\)"),
        ((0, 4), (1, 1), r"upper_bounds must be one or more, >= 1 and increasing \(got \(0, 4\)\)"),
        ((4, 4), (1, 1), r"increasing \(got \(4, 4\)\)"),
        ((4, 8), (1,), r"batch_sizes must be as many as upper_bounds, 2 \(got \(1,\)\)"),
        ((4, 8), (1, 0), r"batch_sizes must be >= 1 \(got \(1, 0\)\)"),
    ],
)
def test_bad_buckets_are_refused(bounds, sizes, message):
    with pytest.raises(ValueError, match=message):
        Buckets(upper_bounds=bounds, batch_sizes=sizes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: with_bounds(4).bucket_of(np.array([1, -2])), r"lengths must be >= 0 \(got -2\)"),
        (lambda: learn_bounds(np.array([1, -1]), 2), r"histogram must be a vector of integers >= 0"),
        (lambda: learn_bounds(np.array([0.5]), 2), r"histogram must be a vector of integers >= 0"),
        (lambda: learn_bounds(np.array([1]), 0), r"num_buckets must be >= 1 \(got 0\)"),
        (lambda: learn_bounds(np.array([1]), 1, multiple_of=0), r"multiple_of must be >= 1 \(got 0\)"),
        (
            lambda: learn_bounds(np.array([1]), 1, last_bound=0),
            r"last_bound must be >= 1 and a multiple of 1 \(got 0\)",
        ),
        (lambda: learn_bounds(np.array([1]), 1, last_bound=9, multiple_of=4), r"a multiple of 4 \(got 9\)"),
        (lambda: learn_bounds(np.array([0]), 1), r"histogram must have an example, or last_bound be given"),
        (lambda: suggest(np.array([], np.int64), 10, 1), r"lengths must be one or more integers >= 0"),
        (lambda: suggest(np.array([1, -1]), 10, 1), r"lengths must be one or more integers >= 0 \(got \[ 1 -1\]\)"),
        (lambda: suggest(np.array([1]), 0, 1), r"tokens_per_batch must be >= 1 \(got 0\)"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.data
def test_real_sentences_waste_little(test_data):
    with gzip.open(test_data / "multi30k" / "train.en.gz", "rt") as lines:
        lengths = np.array([len(line.split()) for line in lines])
    assert len(lengths) == 29_000
    waste = {k: suggest(lengths, 4096, k).padding_waste(lengths) for k in (1, 2, 4, 6, 8, 12)}
    assert waste[6] < 0.12
    assert waste[8] < 0.06
    assert sorted(waste.values(), reverse=True) == list(waste.values())
