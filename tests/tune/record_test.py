"""What a sweep was and what came of it survives on disk, and the best comes first."""

import csv
import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_sweep import sweep, trial

from raylingvo.errors import RequestError
from raylingvo.tune.record import (
    Sweep,
    Trial,
    best_trial,
    columns,
    frame,
    ranked,
    read,
    rows,
    short_keys,
    value_text,
    write,
)

NAN = math.nan
INF = math.inf


def same(a, b):
    """Equality under which NaN is NaN."""
    return repr(a) == repr(b)


def test_the_best_is_the_first_of_equals_and_never_what_is_not_finite():
    one = trial(0, INF, 3.0, -INF, 1.0, NAN, 1.0, 3.0)
    assert one.best("min") == (40, 1.0)
    assert one.best("max") == (20, 3.0)
    assert one.last == (70, 3.0)
    assert trial(0, NAN, INF).best("min") is None
    assert trial(0).best("max") is trial(0).last is None
    assert trial(12).logdir == "trials/0012"


@pytest.mark.parametrize(("mode", "order"), [("min", [1, 4, 5, 0, 2, 3, 7, 6]), ("max", [5, 1, 4, 0, 2, 3, 6, 7])])
def test_the_ranking(mode, order):
    trials = [
        trial(0, NAN, INF),
        trial(1, 2.0),
        trial(2),
        trial(3, status="pending"),
        trial(4, 2.0, NAN),
        trial(5, 3.0),
        trial(6, 1.0, status="failed", error="x"),
        trial(7, 0.5, status="failed", error="x"),
    ]
    assert [t.number for t in ranked(sweep(*trials, mode=mode))] == order
    best = best_trial(sweep(*trials, mode=mode))
    assert best is not None and best.number == order[0]


def test_there_may_be_no_best():
    assert best_trial(sweep()) is None
    assert best_trial(sweep(trial(0, NAN), trial(1))) is None
    assert best_trial(sweep(trial(0, 1.0, status="failed"))) is None


values = st.floats(width=32) | st.sampled_from([NAN, INF, -INF])
params = st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.floats() | st.text())
trials = st.builds(
    Trial,
    number=st.integers(0, 10**5),
    params=params,
    status=st.sampled_from(["pending", "running", "paused", "finished", "stopped", "interrupted", "failed"]),
    step=st.integers(0),
    history=st.lists(values).map(lambda v: tuple((7 * i, value) for i, value in enumerate(v))),
    seconds=st.floats(0, 1e9),
    error=st.none() | st.text(),
    stop_reason=st.none() | st.text(),
    changes=st.lists(
        st.fixed_dictionaries(
            {"step": st.integers(), "from_trial": st.integers(), "params": params}, optional={"before": params}
        )
    ).map(tuple),
)


@given(st.lists(trials, max_size=4))
def test_json_keeps_everything_but_which_value_was_not_finite(trials):
    written = sweep(*trials, ended=7.5, stop_reason="patience")
    again = Sweep.from_json(json.loads(json.dumps(written.to_json(), allow_nan=False)))

    def plain(trial):
        history = tuple((step, value if math.isfinite(value) else NAN) for step, value in trial.history)
        return dataclasses.replace(trial, history=history)

    assert same(again, dataclasses.replace(written, trials=tuple(map(plain, trials))))


def changed():
    """Trained with a rate of 0.1 up to step 10, of 0.2 up to step 30, of infinity since."""
    rates = [0.1, 0.2, INF]
    changes = [
        {"step": step, "from_trial": 3, "params": {"learner.lr": after}, "before": {"learner.lr": before, "norm": "a"}}
        for step, before, after in zip([10, 30], rates[:-1], rates[1:], strict=True)
    ]
    return trial(0, 3.0, 2.0, 1.0, 1.5, params={"learner.lr": INF, "norm": "a"}, changes=tuple(changes))


def test_the_parameters_of_a_step_are_those_it_was_trained_with():
    rates = [changed().params_at(step)["learner.lr"] for step in (0, 9, 10, 11, 30, 31, 1000)]
    assert rates == [0.1, 0.1, 0.1, 0.2, 0.2, INF, INF]
    assert changed().params_at(5) == {"learner.lr": 0.1, "norm": "a"}
    plain = trial(0, 1.0)
    assert plain.params_at(0) == plain.params_at(10) == plain.params


def test_changes_that_do_not_say_what_was_before_have_the_last_parameters():
    """Those of an older version's record."""
    old = [{name: part for name, part in change.items() if name != "before"} for change in changed().changes]
    assert dataclasses.replace(changed(), changes=tuple(old)).params_at(5) == changed().params


def test_what_was_before_a_change_is_written(tmp_path):
    write(sweep(changed()), tmp_path)
    (again,) = read(tmp_path).trials
    assert again == changed()
    assert [change["before"]["learner.lr"] for change in again.changes] == [0.1, 0.2]


def test_what_is_written_is_read(tmp_path):
    written = sweep(trial(0, NAN, 2.0), trial(1, 1.0), ended=9.0, stop_reason="samples", status="finished")
    write(written, tmp_path)
    assert same(read(tmp_path), written)
    write(dataclasses.replace(written, trials=()), tmp_path)
    assert read(tmp_path).trials == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["leaderboard.csv", "sweep.json"]


def test_the_record_has_a_line_for_each_trial(tmp_path):
    write(sweep(*(trial(i, 1.0, 2.0) for i in range(5))), tmp_path)
    lines = (tmp_path / "sweep.json").read_text().splitlines()
    assert [json.loads(line.rstrip(","))["number"] for line in lines if line.startswith('{"number"')] == [0, 1, 2, 3, 4]


def test_the_leaderboard(tmp_path):
    first = trial(0, 3.0, NAN, step=25, seconds=1.5)
    odd = {"learner.lr": INF, "model.norm": True, "added": 'a, "b"'}
    second = trial(1, 2.0, 2.5, status="failed", error="disk, full", params=odd)
    write(sweep(first, second, trial(2, 1.0)), tmp_path)
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        read_back = list(csv.DictReader(file))
    assert list(read_back[0]) == columns(sweep(second)) == [
        *("rank", "trial", "status", "test/loss", "best_step", "test/loss/last", "step", "seconds"),
        *("params/learner.lr", "params/model.norm", "params/added", "error", "logdir"),
    ]  # fmt: skip
    assert [row["trial"] for row in read_back] == ["2", "0", "1"]
    assert list(read_back[1].values()) == [
        *("2", "0", "finished", "3.0", "10", "nan", "25", "1.5", "0.123456789", "a", "", "", "trials/0000")
    ]
    assert [read_back[2][f"params/{key}"] for key in odd] == ["inf", "true", 'a, "b"']
    assert read_back[2]["error"] == "disk, full"


def test_the_frame_has_the_leaderboards_rows():
    shown = frame(sweep(trial(0, 3.0, NAN, step=25), trial(1, 1.0), trial(2)))
    assert list(shown.columns) == columns(sweep(trial(0)))
    assert list(shown["trial"]) == [1, 0, 2]
    assert list(shown["rank"]) == [1, 2, 3]
    losses = shown["test/loss"].tolist()
    assert losses[:2] == [1.0, 3.0] and math.isnan(losses[2])
    assert list(shown["params/model.norm"]) == ["b", "a", "a"]
    assert list(frame(sweep()).columns) == columns(sweep())
    assert rows(sweep()) == []


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        lambda value: value.pop("request") and value,
        lambda value: value["request"].pop("metric") and value,
        lambda value: value | {"status": "lost"},
        lambda value: value | {"trials": [None]},
        lambda value: value | {"trials": [value["trials"][0] | {"status": "lost"}]},
        lambda value: value | {"trials": [value["trials"][0] | {"history": [[20, 1.0], [10, 1.0]]}]},
        lambda value: value | {"trials": [value["trials"][0] | {"params": []}]},
    ],
)
def test_a_damaged_record_is_refused_in_one_line(tmp_path, damage):
    if not isinstance(damage, bytes):
        damage = json.dumps(damage(sweep(trial(0, 1.0)).to_json())).encode()
    (tmp_path / "sweep.json").write_bytes(damage)
    with pytest.raises(RequestError, match=r"sweep\.json is damaged") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", ["", "absent", "file"])
def test_a_missing_record_is_refused(tmp_path, folder):
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="is not the folder of a sweep"):
        read(tmp_path / folder)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="increase"):
        trial(0, history=((10, 1.0), (10, 2.0)))
    with pytest.raises(ValueError, match="got 'done'"):
        trial(0, status="done")
    with pytest.raises(ValueError, match="min or max"):
        sweep(mode="least")


def test_keys_are_as_short_as_tells_them_apart():
    short = {
        "learner.learning_rate": "learning_rate",
        "model.encoder.layers.0.dropout": "encoder…dropout",
        "model.decoder.layers.0.dropout": "decoder…dropout",
        "model.units.0": "units.0",
        "a.width": "a.width",
        "b.width": "b.width",
        "depth": "depth",
        "b.depth": "b.depth",
    }
    assert short_keys(list(short)) == short


@given(st.lists(st.lists(st.sampled_from("abc01"), min_size=1, max_size=5).map(".".join), unique=True, max_size=8))
def test_short_keys_are_different(keys):
    assert len(set(short_keys(keys).values())) == len(keys)


def test_values_as_text():
    values = (None, True, 12345678, 0.000123456, INF, "a b")
    assert [value_text(value) for value in values] == ["null", "true", "12345678", "0.0001235", "inf", "a b"]
    assert value_text(0.000123456, exact=True) == "0.000123456"
