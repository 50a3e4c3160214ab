"""Orders: permutations epoch after epoch, mixtures whose shares are exact, and any position by itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.order import Mixed, Shuffled, permutation, ranks

SMALL = settings(deadline=None, max_examples=50)


@SMALL
@given(st.integers(1, 30), st.integers(0, 2**64 - 1), st.integers(0, 10**12))
def test_an_epoch_is_a_permutation_and_positions_need_no_history(n, seed, epoch):
    examples = np.arange(n) * 7 + 3
    order = Shuffled(examples, seed)
    positions = np.arange(epoch * n, (epoch + 1) * n)
    found = order.at(positions)
    np.testing.assert_array_equal(np.sort(found), examples)
    one_by_one = [Shuffled(examples, seed).at(np.array([p]))[0] for p in positions[::-1]]
    np.testing.assert_array_equal(one_by_one, found[::-1])


def test_streams_of_one_seed_are_of_different_orders():
    orders = {tuple(permutation(20, 5, 0, stream=s)) for s in range(10)}
    assert len(orders) == 10


def test_nothing_to_order_is_refused():
    with pytest.raises(ValueError, match="examples must have at least one"):
        Shuffled(np.arange(0), 0)


@SMALL
@given(st.lists(st.floats(1e-7, 100), min_size=1, max_size=5), st.integers(0, 2**32), st.integers(1, 2))
def test_the_shares_of_a_mixture_are_exact_after_every_block(weights, seed, blocks):
    # As many as are drawn at most: an epoch takes as long as a thousand draws.
    orders = [Shuffled(np.full(20_000, s), seed) for s in range(len(weights))]
    drawn = Mixed(orders, weights, seed).at(np.arange(blocks * 10_000))
    number = np.bincount(drawn, minlength=len(weights))
    expected = np.array(weights) / sum(weights) * blocks * 10_000
    assert (np.abs(number - expected) < len(weights) + 1e-6).all()


def test_a_rare_source_comes_when_its_time_has_come():
    rare = Mixed([Shuffled(np.zeros(110_000, np.int64), 0), Shuffled(np.arange(5) + 1, 0)], [1, 1 / 20_000], 0)
    drawn = rare.at(np.arange(110_000))
    assert sorted(drawn[drawn > 0]) == [1, 2, 3, 4, 5]


@SMALL
@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 2**32))
def test_each_source_of_a_mixture_goes_through_its_own_epochs(n, m, seed):
    a, b = Shuffled(np.arange(n), seed, 1), Shuffled(np.arange(m) + 1000, seed, 2)
    drawn = Mixed([a, b], [0.3, 0.7], seed).at(np.arange(9_000, 11_000))  # over the border of two blocks
    for of_it in (drawn < 1000, drawn >= 1000):
        seen = np.bincount(drawn[of_it] % 1000)
        assert seen.max() - seen.min() <= 2  # an epoch cut at either end


def test_mixed_positions_need_no_history():
    def mixed():
        return Mixed([Shuffled(np.arange(7), 3, 1), Shuffled(np.arange(5) + 100, 3, 2)], [1, 2], 3)

    positions = np.array([0, 9_999, 10_000, 123_456_789, 5])
    whole = mixed().at(np.arange(10_001))
    np.testing.assert_array_equal(mixed().at(positions)[[0, 1, 2, 4]], whole[[0, 9_999, 10_000, 5]])
    assert mixed().at(positions)[3] == mixed().at(positions[3:4])[0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1, 0], "finite numbers > 0"), ([1, float("nan")], "finite"), ([1] * 101, "1 to 100"), ([], "1 to 100")],
)
def test_bad_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        Mixed([Shuffled(np.arange(2), 0)] * 2, weights, 0)


def test_ranks():
    np.testing.assert_array_equal(ranks(np.array([2, 0, 2, 2, 1, 0])), [0, 0, 1, 2, 0, 1])
