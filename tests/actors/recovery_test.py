"""When a role is started again, and when not any more."""

from raylingvo.actors.recovery import Failure, Recovery


def test_restarts_without_progress_wait_longer_each_time_and_end():
    recovery = Recovery(max_restarts=8)
    assert [recovery.delay(10) for _ in range(9)] == [0, 1, 2, 4, 8, 16, 32, 60, None]
    assert recovery.restarts == 8


def test_progress_fills_the_budget_again():
    recovery = Recovery(max_restarts=2)
    assert [recovery.delay(step) for step in (0, 0, 10, 10, 20, 20, 20)] == [0, 1, 0, 1, 0, 1, None]
    assert recovery.restarts == 6


def test_the_same_error_at_the_same_step_ends_it_at_once():
    recovery = Recovery(max_restarts=100)
    assert recovery.delay(10, Failure(13, "ValueError: x")) == 0
    assert recovery.delay(10, Failure(14, "ValueError: x")) == 1
    assert recovery.delay(10, Failure(14, "ValueError: y")) == 2
    assert recovery.delay(10, Failure(14, "ValueError: y")) is None


def test_a_death_in_between_says_nothing_about_an_error():
    recovery = Recovery(max_restarts=100)
    failure = Failure(13, "ValueError: x")
    assert [recovery.delay(10, what) for what in (failure, None, failure, failure)] == [0, 1, 2, None]


def test_no_budget_no_restart():
    assert Recovery(max_restarts=0).delay(10) is None
