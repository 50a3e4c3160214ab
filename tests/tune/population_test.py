"""Population based training: who takes from whom, and what the settings become."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylingvo.tune.population import Exploit, Population, explored
from raylingvo.tune.spaces import Choice, Grid, LogUniform, Normal, QUniform, RandInt, Uniform

RATE = {"rate": LogUniform(1e-4, 1.0)}
WORST = -math.inf


def population(size, *, space=None, mode="max", interval=10, seed=0):
    made = Population(space or RATE, mode=mode, interval=interval, seed=seed)
    for trial in range(size):
        made.add(trial, {"rate": 0.1 / (trial + 1)})
    return made


def judged(population, values, *, step=10):
    """What each trial, in order, is told at this step."""
    return [population.judge(trial, step, value) for trial, value in enumerate(values)]


# -- who takes from whom ----------------------------------------------------------------------------------------------

values = st.floats(-5, 5) | st.sampled_from([math.nan, math.inf, -math.inf, 1.0, 2.0])
stories = st.integers(1, 13).flatmap(
    lambda size: st.tuples(st.just(size), st.lists(st.tuples(st.integers(0, size - 1), values), max_size=60))
)


@given(stories, st.sampled_from(["min", "max"]), st.booleans())
def test_the_lowest_take_from_the_highest(story, mode, works):
    size, news = story
    group = population(size, mode=mode)
    scores: dict[int, float] = {}
    for i, (trial, value) in enumerate(news):
        exploit = group.judge(trial, 10 * (i + 1), value)
        scores[trial] = (value if mode == "max" else -value) if math.isfinite(value) else WORST
        most = min(math.ceil(len(scores) / 4), len(scores) // 2)  # that take, and that give
        lower = sum(score < scores[trial] for score in scores.values())
        if exploit is None:
            # In the lowest quantile is nobody who is not told to take, but if there is nobody better to take from.
            ties = sum(score == scores[trial] for score in scores.values())
            assert lower + ties > most or max(scores.values()) == scores[trial]
            continue
        assert exploit.taker == trial
        assert lower < most
        assert sum(score > scores[exploit.donor] for score in scores.values()) < most
        assert scores[exploit.donor] > scores[trial]
        assert math.isfinite(scores[exploit.donor])
        if works:
            group.done(exploit)
            scores[trial] = scores[exploit.donor]


@pytest.mark.parametrize("size", range(1, 18))
def test_a_quarter_takes_rounded_up_and_of_each_pair_one(size):
    group = population(size)
    judged(group, range(size))
    takers = [trial for trial in range(size) if group.judge(trial, 20, trial) is not None]
    assert takers == list(range(min(math.ceil(size / 4), size // 2)))


def test_alone_there_is_nobody_to_take_from():
    group = population(1)
    assert [group.judge(0, 10 * step, -float(step)) for step in range(1, 9)] == [None] * 8
    # Nor is there before anybody else has been judged.
    group = population(4)
    assert group.judge(2, 10, math.nan) is None


def test_of_two_the_poorer_takes():
    group = population(2)
    assert group.judge(0, 10, 1.0) is None
    exploit = group.judge(1, 10, 0.5)
    assert exploit is not None and exploit[:2] == (1, 0)
    assert group.judge(0, 20, 1.5) is None
    exploit = group.judge(0, 30, 0.25)
    assert exploit is not None and exploit[:2] == (0, 1)
    equal = population(2)
    assert judged(equal, [1.0, 1.0]) == [None, None]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_loses(mode, bad):
    group = population(4, mode=mode)
    assert judged(group, [3.0, 2.0, 1.0])[0] is None
    exploit = group.judge(3, 10, bad)
    best = 0 if mode == "max" else 2
    assert exploit is not None and exploit[:2] == (3, best)
    assert judged(population(4, mode=mode), [bad] * 4) == [None] * 4


def test_the_newest_value_counts():
    group = population(4)
    judged(group, [9.0, 5.0, 6.0, 7.0])
    exploit = group.judge(0, 20, 1.0)
    assert exploit is not None and exploit[:2] == (0, 3)


def test_who_has_taken_stands_as_who_gave():
    group = population(4)
    told = judged(group, [4.0, 3.0, 2.0, 1.0])
    assert told[3] is not None and told[3][:2] == (3, 0)
    group.done(told[3])
    # Now the third is the last, and 0 and 3 lead.
    assert group.judge(1, 20, 3.0) is None
    exploit = group.judge(2, 20, 2.0)
    assert exploit is not None and exploit.donor == 0


def test_what_could_not_be_done_changes_nothing():
    group = population(4)
    assert judged(group, [4.0, 3.0, 2.0, 1.0])[3] is not None
    again = group.judge(3, 20, 1.0)  # `done` was not called
    assert again is not None and again[:2] == (3, 0)


def test_all_of_the_highest_quantile_give():
    group = population(12)
    judged(group, range(12))
    donors = Counter(group.judge(0, 20, 0.0).donor for _ in range(200))  # type: ignore[union-attr]
    assert set(donors) == {9, 10, 11}
    assert min(donors.values()) > 40


# -- when -------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 20), st.lists(st.integers(1, 30), max_size=30))
def test_a_trial_is_due_each_interval(interval, news):
    """Whatever the steps between evaluations, the intervals between judgements are the shortest that can be."""
    group = population(1, interval=interval)
    step = last = 0
    for more in news:
        step += more
        assert group.is_due(0, step) == (step - last >= interval)
        if group.is_due(0, step):
            group.judge(0, step, 1.0)
            last = step
            assert not group.is_due(0, step)


def test_trials_are_due_each_by_itself():
    group = population(2, interval=10)
    group.judge(0, 12, 1.0)
    assert not group.is_due(0, 21)
    assert group.is_due(1, 10)
    assert group.is_due(0, 22)


def test_a_trial_that_is_added_again_stays_as_it_is():
    group = population(2)
    group.judge(0, 10, 1.0)
    group.add(0, {"rate": 1.0})
    assert not group.is_due(0, 19)
    rates = {group.judge(1, 10, 0.0).params["rate"] for _ in range(20)}  # type: ignore[union-attr]
    assert rates >= {0.1 * 0.8, 0.1 * 1.2}


# -- what the settings become -----------------------------------------------------------------------------------------

SPACES = {
    "uniform": Uniform(-1.0, 2.0),
    "loguniform": LogUniform(1e-3, 1e-1),
    "quniform": QUniform(0.1, 0.9, 0.1),
    "whole": QUniform(2, 12, 5),
    "randint": RandInt(-2, 4),
    "normal": Normal(1.0, 2.0),
    "choice": Choice(("a", None, True, 2, 0.5)),
    "grid": Grid((8, 2, 4)),
    "one": Choice(("only",)),
}
FIRST = {"uniform": 1.9, "loguniform": 2e-3, "quniform": 0.3, "whole": 5, "randint": 3, "normal": 1.0}
FIRST |= {"choice": None, "grid": 2, "one": "only"}


@given(st.integers(0, 2**32))
def test_explored_values_are_of_their_spaces_and_types(seed):
    rng = np.random.default_rng(seed)
    params: dict = dict(FIRST)
    for _ in range(20):
        params = {key: explored(space, params[key], rng) for key, space in SPACES.items()}
        for key, space in SPACES.items():
            value = params[key]
            if space.size is not None:
                assert any(type(value) is type(other) and value == other for other in space.values())
            else:
                assert type(value) is float and math.isfinite(value)
        assert -1.0 <= params["uniform"] <= 2.0
        assert 1e-3 <= params["loguniform"] <= 1e-1


def often(space, value):
    rng = np.random.default_rng(5)
    return Counter(explored(space, value, rng) for _ in range(2000))


@pytest.mark.parametrize(
    ("space", "value"), [(LogUniform(1e-3, 10.0), 0.5), (Uniform(0, 2), 0.5), (Normal(0, 1), -2.0)]
)
def test_numbers_grow_or_shrink_by_a_fifth_or_are_drawn(space, value):
    found = often(space, value)
    down, up = found.pop(value * 0.8), found.pop(value * 1.2)
    assert abs(down - 750) < 100 and abs(up - 750) < 100
    assert abs(found.total() - 500) < 100
    assert len(found) == found.total()  # all drawn


def test_numbers_stop_at_the_bounds():
    assert often(Uniform(0.0, 1.0), 0.9)[1.0] > 600
    assert often(LogUniform(0.1, 1.0), 0.11)[0.1] > 600


@pytest.mark.parametrize(
    ("space", "value", "near"),
    [
        (QUniform(0.1, 0.9, 0.1), 0.3, {0.2, 0.4}),
        (QUniform(0, 100, 10), 50, {40, 60}),
        (QUniform(0, 200, 10), 100, {80, 120}),
        (QUniform(0, 100, 10), 80, {60, 100}),
        (QUniform(0, 100, 10), 0, {0, 10}),
        (QUniform(0, 95, 10), 90, {70, 90}),
        (RandInt(0, 50), 7, {6, 8}),
        (RandInt(0, 50), 20, {16, 24}),
        (RandInt(0, 50), 49, {39, 49}),
        (RandInt(-50, 50), -20, {-24, -16}),
        (RandInt(0, 50), 0, {0, 1}),
        (Choice(tuple("abcdefghijklmnop")), "c", {"b", "d"}),
        (Grid(tuple("hgfedcba")), "h", {"h", "g"}),
    ],
)
def test_other_values_go_up_or_down_or_are_drawn(space, value, near):
    """Ints and multiples by a fifth, but at least to the next one; what has no size to a neighbour."""
    found = often(space, value)
    for one in near:
        assert found.pop(one) > 650
    assert found.total() < 550
    assert found.keys() | near >= set(space.values()) - {value}


def test_what_a_space_does_not_list_goes_to_a_neighbour():
    """Steps of another q may come from a record."""
    found = often(QUniform(0.0, 1.0, 0.25), 0.3)
    assert set(found) <= {0.0, 0.25, 0.5, 0.75, 1.0}


def test_a_space_need_not_fit_into_memory():
    """2^61 ints are more than there can be in a list."""
    values = often(RandInt(0, 2**61), 1000)
    assert {800, 1200} < values.keys()
    values = often(QUniform(0, 2**61, 4), 1000)
    assert {800, 1200} < values.keys()


def test_an_exploit_varies_the_donors_params():
    group = Population({"rate": RandInt(0, 100)}, mode="min", interval=1, seed=0)
    group.add(0, {"rate": 50})
    group.add(1, {"rate": 10})
    group.judge(0, 1, 0.0)
    found = Counter(group.judge(1, 1, 1.0).params["rate"] for _ in range(100))  # type: ignore[union-attr]
    assert found[40] + found[60] > 60


def test_params_that_have_been_taken_are_given_on():
    group = Population({"rate": RandInt(0, 1000)}, mode="max", interval=1, seed=0)
    group.add(0, {"rate": 10})
    group.add(1, {"rate": 20})
    group.judge(0, 1, 1.0)
    group.judge(1, 1, 0.5)
    group.done(Exploit(1, 0, {"rate": 500}))
    group.judge(1, 2, 2.0)
    found = Counter(group.judge(0, 2, 0.0).params["rate"] for _ in range(100))  # type: ignore[union-attr]
    assert found[400] + found[600] > 60


def told(seed):
    group = population(8, seed=seed)
    exploits = []
    for step in range(1, 12):
        for trial in range(8):
            exploits.append(group.judge(trial, 10 * step, math.sin(trial * step)))
            if exploits[-1] is not None:
                group.done(exploits[-1])
    return exploits


def test_a_seed_says_it_all():
    assert told(3) == told(3)
    assert told(3) != told(4)
    assert sum(one is not None for one in told(3)) > 10
