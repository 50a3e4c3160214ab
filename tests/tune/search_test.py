"""Which trials there are: those of the record first, then what a source suggests, which hears what came of them."""

from __future__ import annotations

import builtins
import itertools
import math
import types
from typing import Any

import pytest
from ray.tune.search import Searcher

from raylingvo.errors import RequestError
from raylingvo.tune import sweep
from raylingvo.tune.record import Trial
from raylingvo.tune.search import Listed, Optuna, Source, SweepSearch, recorded_config
from raylingvo.tune.spaces import Choice, Grid, LogUniform, Normal, QUniform, RandInt, Uniform
from raylingvo.tune.trainable import result

MIXED = {
    "size": Grid((8, 2)),
    "rate": LogUniform(1e-4, 1e-1),
    "norm": Grid(("layer", None)),
    "drop": Uniform(0.0, 0.5),
}

# -- all known beforehand ---------------------------------------------------------------------------------------------


def test_a_grid_search_has_all_combinations_the_last_key_fastest():
    space = {"a": Grid((2, 1)), "b": RandInt(5, 7), "c": Choice((True, None))}
    listed = Listed(space, search="grid", samples=1, seed=0)
    expected = [{"a": a, "b": b, "c": c} for a, b, c in itertools.product((2, 1), (5, 6), (True, None))]
    assert listed.size == 8
    assert [listed.suggest(number) for number in range(8)] == listed.params == expected


def test_a_grid_search_needs_lists():
    with pytest.raises(RequestError, match=r"^--search grid: uniform\(0, 1\) of b has no list of values"):
        Listed({"a": Grid((1,)), "b": Uniform(0, 1)}, search="grid", samples=1, seed=0)


def test_random_trials_are_drawn_for_each_combination_of_the_grids():
    listed: Any = Listed(MIXED, search="random", samples=3, seed=0)
    assert listed.size == len(listed.params) == 3 * 4
    assert all(list(params) == list(MIXED) for params in listed.params)
    for sample in range(3):
        of_sample = listed.params[4 * sample : 4 * sample + 4]
        assert [(params["size"], params["norm"]) for params in of_sample] == list(
            itertools.product((8, 2), ("layer", None))
        )
        # The combinations are compared under the same draws.
        assert len({(params["rate"], params["drop"]) for params in of_sample}) == 1
    assert len({params["rate"] for params in listed.params}) == 3
    for key, low, high in [("rate", 1e-4, 1e-1), ("drop", 0.0, 0.5)]:
        assert all(isinstance(params[key], float) and low <= params[key] <= high for params in listed.params)


def test_without_grids_there_are_as_many_as_samples():
    listed = Listed({"rate": Uniform(0, 1)}, search="random", samples=5, seed=0)
    assert listed.size == len({params["rate"] for params in listed.params}) == 5


def test_the_seed_says_it_all():
    def params(seed):
        return Listed(MIXED, search="random", samples=4, seed=seed).params

    assert params(1) == params(1)
    assert not {p["rate"] for p in params(1)} & {p["rate"] for p in params(2)}


@pytest.mark.parametrize("space", [MIXED, {"rate": Uniform(0, 1)}])
def test_more_samples_leave_the_earlier_trials_as_they_are(space):
    few, many = (Listed(space, search="random", samples=samples, seed=0).params for samples in (2, 5))
    assert few == many[: len(few)]
    assert len(few) < len(many)


# -- Tune's side ------------------------------------------------------------------------------------------------------


class Asked(Source):
    """Suggests the trial's number, and notes what it is told."""

    def __init__(self):
        self.suggested = []
        self.told = []

    def suggest(self, number):
        self.suggested.append(number)
        return {"rate": float(number)}

    def observe(self, number, params, value):
        self.told.append((number, dict(params), value))


def searching(source=None, recorded=(), *, mode="min", samples=4, over=lambda: False, **options):
    source = Asked() if source is None else source
    return source, SweepSearch(source, recorded, mode=mode, samples=samples, over=over, **options)


def test_trials_of_the_record_come_first_as_they_were():
    ended = {"trial": 0, "params": {"rate": 9.0}, "history": [[3, 1.0]], "end": ["finished", 3, ""]}
    begun = {"trial": 1, "params": {"rate": 8.0}}
    source, search = searching(recorded=[ended, begun])
    assert [search.suggest(f"id{i}") for i in range(5)] == [
        ended,
        begun,
        {"trial": 2, "params": {"rate": 2.0}},
        {"trial": 3, "params": {"rate": 3.0}},
        Searcher.FINISHED,
    ]
    assert source.suggested == [2, 3]


def test_a_suggestion_belongs_to_tune():
    """Tune changes the configs that it gets."""
    recorded = {"trial": 0, "params": {"rate": 9.0}}
    source, search = searching(recorded=[recorded])
    for number in range(2):
        config = search.suggest(f"id{number}")
        config["trial"] = None
        search.on_trial_complete(f"id{number}", result(3, 1.0, "min"))
    assert recorded["trial"] == 0
    assert [told[0] for told in source.told] == [0, 1]


def test_nothing_begins_after_the_end():
    over = []
    source, search = searching(over=lambda: bool(over), at_once=1)
    assert search.suggest("a")["trial"] == 0
    over.append("Ctrl-C")
    assert search.suggest("b") == Searcher.FINISHED
    assert source.suggested == [0]


def test_so_many_trials_are_under_way_and_no_more():
    """A trial of the record, too, has to be told again before its place is free."""
    source, search = searching(recorded=[{"trial": 0, "params": {}, "end": ["failed", 0, "x"]}], samples=4, at_once=2)
    assert [search.suggest(trial) is None for trial in "abcc"] == [False, False, True, True]
    search.on_trial_result("a", result(3, 1.0, "min"))
    assert search.suggest("c") is None
    search.on_trial_complete("a", result(3, 1.0, "min"))
    assert search.suggest("c")["trial"] == 2
    assert search.suggest("d") is None
    search.on_trial_complete("b", error=True)
    assert search.suggest("d")["trial"] == 3
    assert search.suggest("e") == Searcher.FINISHED  # none is left: Tune need not ask again
    assert source.suggested == [1, 2, 3]


@pytest.mark.parametrize(("mode", "best"), [("min", -1.0), ("max", 5.0)])
def test_the_source_hears_the_best_value(mode, best):
    source, search = searching(mode=mode)
    for trial in "ab":
        search.suggest(trial)
    for value in (3.0, math.nan, best, 2.0):
        search.on_trial_result("a", result(1, value, mode))
    search.on_trial_result("b", result(1, 4.0, mode))
    assert source.told == []
    search.on_trial_complete("a", {**result(9, 2.0, mode), "end": ["finished", 9, "max_steps"]})
    assert source.told == [(0, {"rate": 0.0}, best)]
    search.on_trial_complete("b", {**result(9, 4.5, mode), "end": ["stopped", 9, "asha"]})
    assert source.told[1] == (1, {"rate": 1.0}, 4.0 if mode == "min" else 4.5)


def test_the_source_hears_of_a_trial_that_waits():
    waiting = set()
    source, search = searching(waits=waiting.__contains__)
    search.suggest("a")
    search.on_trial_result("a", result(3, 2.0, "min"))
    assert source.told == []
    waiting.add(0)
    search.on_trial_result("a", result(6, 3.0, "min"))
    assert source.told == [(0, {"rate": 0.0}, 2.0)]
    waiting.clear()
    search.on_trial_complete("a", {**result(9, 1.0, "min"), "end": ["finished", 9, ""]})
    assert source.told[1:] == [(0, {"rate": 0.0}, 1.0)]


def test_where_trials_wait_a_search_is_open_until_all_have_ended():
    """Tune closes processes that could be used again when a search is over."""
    _, search = searching(waits=lambda number: False, samples=1)
    search.suggest("a")
    assert search.suggest("b") is None
    search.on_trial_complete("a", result(9, 1.0, "min"))
    assert search.suggest("b") == Searcher.FINISHED


def test_no_trial_is_suggested_that_may_not_begin():
    room = [True, False, False, True]
    _, search = searching(may_begin=lambda: room.pop(0))
    assert [search.suggest(name) and name for name in "abcd"] == ["a", None, None, "d"]


def test_the_last_result_counts_too():
    source, search = searching()
    search.suggest("a")
    search.on_trial_complete("a", result(3, 2.0, "min"))
    assert source.told == [(0, {"rate": 0.0}, 2.0)]


@pytest.mark.parametrize(
    ("last", "error"),
    [
        ({**result(9, 1.0, "min"), "end": ["failed", 9, "RuntimeError: no"]}, False),
        (result(9, 1.0, "min"), True),
        (None, True),
        ({"end": ["finished", 9, ""]}, False),
        (result(9, math.nan, "min"), False),
        (None, False),
    ],
)
def test_the_source_hears_of_failures_and_of_trials_without_a_value(last, error):
    source, search = searching()
    search.suggest("a")
    if error or (last or {}).get("end", [""])[0] == "failed":
        search.on_trial_result("a", result(3, 1.0, "min"))
    search.on_trial_complete("a", last, error=error)
    assert source.told == [(0, {"rate": 0.0}, None)]


@pytest.mark.parametrize(("mode", "bad"), [("min", -math.inf), ("max", math.inf), ("min", math.nan), ("max", math.nan)])
def test_what_is_not_finite_is_no_best_value(mode, bad):
    """As in the record, from which a sweep that goes on tells its source."""
    source, search = searching(mode=mode)
    search.suggest("a")
    search.on_trial_result("a", result(1, 1.0, mode))
    search.on_trial_complete("a", result(2, bad, mode))
    assert source.told == [(0, {"rate": 0.0}, 1.0)]
    # Schedulers do hear of it, as of the worst that there is.
    assert result(2, bad, mode)["value"] == (1e30 if mode == "min" else -1e30)
    assert Trial(number=0, params={}, history=((1, 1.0), (2, bad))).best(mode) == (1, 1.0)


def test_a_trial_that_tune_made_otherwise_is_none_of_ours():
    source, search = searching()
    search.on_trial_complete("z", result(3, 1.0, "min"))
    search.suggest("a")
    for _ in range(2):
        search.on_trial_complete("a", result(3, 1.0, "min"))
    assert len(source.told) == 1


def test_the_record_is_all_that_is_saved(tmp_path, caplog):
    """As Tune does it, which warns of a searcher that cannot be saved."""
    _, search = searching()
    search.save_to_dir(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []


def test_what_tune_is_told_of_the_metric():
    for mode in ("min", "max"):
        _, search = searching(mode=mode)
        assert (search.metric, search.mode) == ("value", mode)


# -- the record -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
def test_a_trial_that_has_ended_is_told_again(status):
    trial = Trial(
        number=3,
        params={"rate": 0.7},
        status=status,
        step=12,
        history=((3, 1.0), (6, 0.5)),
        error="RuntimeError: no" if status == "failed" else None,
        stop_reason=None if status == "finished" else "stopped by asha at step 6",
    )
    reason = {"finished": "", "stopped": "stopped by asha at step 6", "failed": "RuntimeError: no"}[status]
    assert recorded_config(trial, {"rate": 0.5}, told_again=False) == {
        "trial": 3,
        "params": {"rate": 0.5},
        "history": [[3, 1.0], [6, 0.5]],
        "end": [status, 12, reason],
    }


@pytest.mark.parametrize("status", ["pending", "running", "paused", "interrupted"])
def test_a_trial_that_has_not_ended_runs(status):
    trial = Trial(number=3, params={"rate": 0.7}, status=status, step=12, history=((3, 1.0),))
    params = {"rate": 0.5}
    config = recorded_config(trial, params, told_again=False)
    assert config == {"trial": 3, "params": params}
    assert config["params"] is not params
    again = recorded_config(trial, params, told_again=True)
    assert again == {"trial": 3, "params": params, "history": [[3, 1.0]]}


# -- Optuna -----------------------------------------------------------------------------------------------------------

ALL = {
    "rate": LogUniform(1e-4, 1e-1),
    "drop": Uniform(-1.0, 0.5),
    "whole": QUniform(3, 9, 2),
    "depth": RandInt(3, 6),
    "norm": Choice(("layer", None, True, 2)),
    "size": Grid((8, 2)),
}


def test_without_optuna_the_error_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "optuna":
            raise ModuleNotFoundError("No module named 'optuna'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RequestError) as caught:
        Optuna(ALL, mode="min", seed=0)
    assert str(caught.value) == "--search optuna: Optuna is not installed; run: pip install optuna"


def suggested(source, count, *, first=0):
    made = []
    for number in range(first, first + count):
        made.append(dict(source.suggest(number)))
        source.observe(number, made[-1], made[-1]["rate"])
    return made


def test_optuna_suggests_values_of_the_spaces():
    params = suggested(Optuna(ALL, mode="min", seed=1), 25)
    assert all(list(one) == list(ALL) for one in params)
    for key, space in ALL.items():
        found = [one[key] for one in params]
        if space.size is None:
            assert all(type(value) is float for value in found)
            assert min(found) >= space.low and max(found) <= space.high
            assert len(set(found)) == 25
        else:
            assert {(type(value), value) for value in found} <= {(type(value), value) for value in space.values()}
            assert len(set(found)) > 1


def test_optuna_suggests_logarithms_that_are_equally_likely():
    rates = [one["rate"] for one in suggested(Optuna({"rate": LogUniform(1e-8, 1.0)}, mode="max", seed=1), 10)]
    assert sum(rate < 1e-3 for rate in rates) > 2


def test_optuna_suggests_the_multiples_that_are_written():
    """0.3, not 3 * 0.1."""
    space = QUniform(0.1, 0.9, 0.1)
    source = Optuna({"rate": space}, mode="min", seed=1)
    assert {one["rate"] for one in suggested(source, 25)} <= set(space.values())


def test_optuna_is_seeded():
    assert suggested(Optuna(ALL, mode="min", seed=1), 14) == suggested(Optuna(ALL, mode="min", seed=1), 14)
    assert suggested(Optuna(ALL, mode="min", seed=1), 3) != suggested(Optuna(ALL, mode="min", seed=2), 3)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_optuna_learns(mode):
    """Where values are the better the nearer x is to an end, most of the later suggestions are near it."""
    source = Optuna({"x": Uniform(0.0, 1.0)}, mode=mode, seed=0)
    found = []
    for number in range(40):
        found.append(source.suggest(number)["x"])
        source.observe(number, {"x": found[-1]}, found[-1])
    mean = sum(found[20:]) / 20
    assert mean < 0.25 if mode == "min" else mean > 0.75


def test_optuna_hears_of_failures():
    source = Optuna(ALL, mode="min", seed=0)
    for number, value in enumerate((2.0, None)):
        source.observe(number, source.suggest(number), value)
    source.observe(2, source.suggest(0), None)  # of an earlier start: nothing is known of it that helps
    assert [trial.value for trial in source._known.values()] == [2.0]


def test_optuna_has_not_all_spaces():
    with pytest.raises(RequestError) as caught:
        Optuna({"x": Normal(0, 1)}, mode="min", seed=0)
    assert str(caught.value) == (
        "--search optuna: normal(0, 1) of x is not one of its spaces; use uniform or loguniform"
    )


def test_optuna_is_asked_for_as_many_as_there_are_to_be():
    assert Optuna(ALL, mode="min", seed=0).size is None


def test_optuna_learns_of_trials_of_an_earlier_start():
    params = suggested(Optuna(ALL, mode="min", seed=1), 2)
    source = Optuna(ALL, mode="min", seed=1)
    for number, one in enumerate(params):
        source.observe(number, one, one["rate"])
    assert [(trial.params, trial.value) for trial in source._known.values()] == [(one, one["rate"]) for one in params]


def test_optuna_goes_by_what_it_has_heard_last():
    """A trial that waits may go on."""
    params = suggested(Optuna(ALL, mode="min", seed=1), 1)[0]
    source = Optuna(ALL, mode="min", seed=1)
    for value in (2.0, 1.0):
        source.observe(0, params, value)
    assert [trial.value for trial in source._known.values()] == [1.0]
    source.observe(0, params, None)
    assert not source._known


def test_a_sweep_that_goes_on_with_optuna_tries_something_new():
    first = suggested(Optuna(ALL, mode="min", seed=1), 3)
    again = Optuna(ALL, mode="min", seed=1)
    for number, params in enumerate(first):
        again.observe(number, params, params["rate"])
    rates = [one["rate"] for one in suggested(again, 3, first=3)]
    assert not set(rates) & {one["rate"] for one in first}


def test_optuna_hears_of_a_recorded_trial_once():
    """`sweep` tells it of the record before the first suggestion; Tune then repeats those trials."""
    params = suggested(Optuna(ALL, mode="min", seed=1), 3)
    trials = {
        i: Trial(number=i, params=one, status="finished", step=3, history=((3, one["rate"]),))
        for i, one in enumerate(params)
    }
    source = Optuna(ALL, mode="min", seed=1)
    book = types.SimpleNamespace(trials=trials, request=types.SimpleNamespace(mode="min"))
    recorded = sweep._recorded(book, source, 4, False, told_again=False)  # type: ignore[arg-type]
    _, search = searching(source, recorded)
    for config in recorded:
        name = f"id{config['trial']}"
        assert search.suggest(name) == config
        ((step, value),) = config["history"]
        search.on_trial_result(name, result(step, value, "min"))
        search.on_trial_complete(name, {**result(step, value, "min"), "end": config["end"]})
    assert [trial.value for trial in source._known.values()] == [one["rate"] for one in params]
