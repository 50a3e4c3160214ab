"""What a command prints at the end of a sweep."""

from __future__ import annotations

import math
from pathlib import Path

import toy_sweep

from raylingvo.tune.summary import format_sweep
from raylingvo.tune.sweep import SweepResult


def trial(number, *values, **fields):
    params = {"learner.learning_rate": 0.1 / (number + 3), "task.norm": None if number % 2 else "layer"}
    return toy_sweep.trial(number, *values, params=params, **fields)


def result(*trials, **fields):
    spaces = {"learner.learning_rate": "loguniform(1e-4, 1)", "task.norm": "choice(layer, none)"}
    ended = {"status": "finished", "stop_reason": "all trials have ended", "ended": 9.0}
    return SweepResult(Path("/logs/a"), toy_sweep.sweep(*trials, spaces=spaces, **ended | fields))


def test_the_summary():
    trials = [
        trial(0, 3.0, 2.5),
        trial(1, 0.25, math.nan, 1.0, step=35),
        trial(2, 9.0, status="stopped"),
        trial(3, math.nan),
        trial(4, 0.1, status="failed", error="RuntimeError: no"),
    ]
    assert format_sweep(result(*trials)).splitlines() == [
        "toy.Toy: sweep finished (all trials have ended): 3 finished, 1 stopped, 1 failed",
        "  1. trial 0001  test/loss 0.2500 @ 10  learning_rate=0.025  norm=null  (finished at step 35)",
        "  2. trial 0000  test/loss 2.5000 @ 20  learning_rate=0.03333  norm=layer  (finished at step 20)",
        "  3. trial 0002  test/loss 9.0000 @ 10  learning_rate=0.02  norm=layer  (stopped at step 10)",
        "  4. trial 0003  no value  learning_rate=0.01667  norm=null  (finished at step 10)",
        "  5. trial 0004  test/loss 0.1000 @ 10  learning_rate=0.01429  norm=layer  (failed at step 10)",
        "  best     raylingvo run --config /logs/a/best/config.yaml --logdir DIR",
        "  report   /logs/a/report.html",
        "  logdir   /logs/a",
    ]


def test_the_largest_is_first_where_it_is_best():
    lines = format_sweep(result(trial(0, 1.0, 4.0), trial(1, 3.0), mode="max")).splitlines()
    assert [line.split("  ")[1:3] for line in lines[1:3]] == [
        ["1. trial 0000", "test/loss 4.0000 @ 20"],
        ["2. trial 0001", "test/loss 3.0000 @ 10"],
    ]


def test_five_lead():
    lines = format_sweep(result(*(trial(i, float(i)) for i in range(12)))).splitlines()
    assert lines[0].endswith(": 12 finished")
    assert [line.split()[:3] for line in lines if " trial " in line] == [
        [f"{i + 1}.", "trial", f"{i:04d}"] for i in range(5)
    ]


def test_what_has_no_best_names_none():
    for trials in ((), (trial(0, math.nan),), (trial(0, 1.0, status="failed", error="x"),)):
        text = format_sweep(result(*trials, status="interrupted", stop_reason="Ctrl-C"))
        assert "--config" not in text
        assert text.endswith("\n  report   /logs/a/report.html\n  logdir   /logs/a")
    assert format_sweep(result(status="interrupted", stop_reason="Ctrl-C")).startswith(
        "toy.Toy: sweep interrupted (Ctrl-C): no trials\n"
    )


def test_the_command_can_be_copied():
    """A folder may have a space in its name."""
    made = result(trial(0, 1.0))
    text = format_sweep(SweepResult(Path("/my logs/a"), made.sweep))
    assert "raylingvo run --config '/my logs/a/best/config.yaml' --logdir DIR" in text
