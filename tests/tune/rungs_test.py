"""Successive halving: who goes on from a rung, who waits there, and how many steps that takes."""

from __future__ import annotations

import math

import pytest

from raylingvo.tune.rungs import Rungs


def rungs(total: int, *, mode: str = "max", grace: int = 3, factor: int = 3, max_steps: int = 27) -> Rungs:
    return Rungs(total, mode=mode, grace=grace, factor=factor, max_steps=max_steps)


GOES_ON, WAITS = True, False


def told(made: Rungs, number: int, step: int, value: float) -> bool:
    made.note(number, step, value)
    return made.may_go_on(number, step)


def all_told(made: Rungs, step: int, *values: float) -> list[bool]:
    """What is decided of trials 0, 1, ... that come to a step one after the other."""
    return [told(made, number, step, value) for number, value in enumerate(values)]


@pytest.mark.parametrize(
    ("max_steps", "grace", "factor", "steps"),
    [(27, 1, 3, [1, 3, 9]), (28, 1, 3, [1, 3, 9, 27]), (16, 2, 2, [2, 4, 8]), (12, 12, 3, []), (200, 30, 3, [30, 90])],
)
def test_rungs_lie_below_the_end(max_steps: int, grace: int, factor: int, steps: list[int]) -> None:
    assert rungs(9, grace=grace, factor=factor, max_steps=max_steps).steps == steps


@pytest.mark.parametrize("mode", ["min", "max"])
def test_one_in_three_goes_on_and_nobody_for_having_come_first(mode: str) -> None:
    made = rungs(9, mode=mode)
    sign = 1 if mode == "max" else -1
    values = [sign * value for value in (1.0, 2.0, 3.0)]
    assert all_told(made, 2, *values) == [GOES_ON] * 3
    assert all_told(made, 3, *values) == [WAITS, WAITS, GOES_ON]
    assert [made.waits(number) for number in range(4)] == [True, True, False, False]


def test_who_waits_goes_on_when_enough_have_come() -> None:
    made = rungs(9)
    assert all_told(made, 3, 5.0, 9.0, 1.0) == [WAITS, WAITS, WAITS]
    assert made.next([0, 1, 2]) == 1
    made.go_on(1)
    assert made.next([0, 1, 2]) is None
    assert [told(made, number, 3, 2.0) for number in (3, 4)] == [WAITS, WAITS]
    assert made.next([0, 2, 3, 4]) is None
    assert told(made, 5, 3, 2.0) == WAITS
    assert made.next([0, 2, 3, 4, 5]) == 0


def test_only_candidates_go_on() -> None:
    """Others may still be writing what they go on from."""
    made = rungs(9)
    all_told(made, 3, 5.0, 9.0, 1.0)
    assert made.next([0, 2]) is None


def test_the_highest_rung_is_served_first() -> None:
    made = rungs(18)
    for number in range(3):
        made.note(number, 9, float(number))
    for number in range(3, 9):
        made.note(number, 3, 10.0)
    assert [number for number in range(9) if made.waits(number)] == [*range(9)]
    assert made.next(range(9)) == 2
    made.go_on(2)
    assert made.next(range(9)) == 3


def test_no_more_go_on_than_if_all_came_together() -> None:
    """Of nine trials one gets beyond the second rung, though six have got there by their order."""
    made = rungs(9)
    values = [float(number) for number in range(6)]
    for number, value in enumerate(values):
        made.go_on(number) if told(made, number, 3, value) is WAITS else None
    assert all_told(made, 9, *values[:5]) == [WAITS, WAITS, GOES_ON, GOES_ON, GOES_ON]
    made = rungs(9)
    assert all_told(made, 9, *values[::-1]) == [WAITS] * 6
    assert made.next(range(6)) == 0
    made.go_on(0)
    assert made.next(range(6)) is None


def test_the_first_value_at_or_after_a_rung_counts() -> None:
    made = rungs(3)
    assert told(made, 0, 4, 5.0) == WAITS
    assert told(made, 0, 5, 9.0) == WAITS
    assert told(made, 1, 3, 6.0) == WAITS
    assert told(made, 2, 3, 1.0) == WAITS
    assert made.next(range(3)) == 1


def test_a_trial_that_steps_over_a_rung_is_judged_at_the_next() -> None:
    made = rungs(9)
    assert told(made, 0, 10, 1.0) == WAITS
    made.go_on(0)
    assert told(made, 0, 27, 1.0) == GOES_ON


def test_what_has_diverged_never_goes_on() -> None:
    made = rungs(9, mode="min")
    assert all_told(made, 3, math.nan, math.inf, 1e30) == [WAITS, WAITS, GOES_ON]
    made = rungs(9)
    assert all_told(made, 3, *[math.nan] * 9) == [WAITS] * 9
    assert made.next(range(9)) is made.last_resort(range(9)) is None


def test_of_few_trials_the_best_comes_to_its_end() -> None:
    made = rungs(2)
    assert all_told(made, 3, 1.0, 2.0) == [WAITS, WAITS]
    assert made.next([0, 1]) is None
    assert made.last_resort([0, 1]) == 1
    made.go_on(1)
    assert told(made, 1, 9, 1.5) is WAITS
    assert made.last_resort([0, 1]) == 1  # and not the other, which is less far
    made.go_on(1)
    assert told(made, 1, 20, 1.4) is GOES_ON
    made.end(1, whole=True)  # it may end before it has had all its steps
    assert made.last_resort([0]) is None


def test_if_the_best_fails_another_takes_its_place() -> None:
    made = rungs(4)
    all_told(made, 3, 1.0, 2.0, 3.0, 0.1)
    made.end(2, whole=False)
    assert made.last_resort([0, 1]) == 1
    assert not made.waits(2)


def test_whether_a_trial_has_trained_on_after_its_rung() -> None:
    made = rungs(9)
    for step in (2, 4, 6):
        made.note(0, step, 1.0)
    assert [made.is_beyond(0, step) for step in (4, 6)] == [False, True]
    assert not made.is_beyond(1, 2)
