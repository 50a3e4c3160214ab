"""raylingvo.config: overrides, YAML, flat forms and their errors."""

from __future__ import annotations

import abc
import copy
import dataclasses
import enum
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pytest
import yaml

from raylingvo.config import FrozenDict, diff, dump, flatten, load, override, params_text, parse_assignments
from raylingvo.errors import RequestError

HERE = __name__  # under which the classes below are written


class Precision(enum.Enum):
    HALF = "bf16"
    FULL = "f32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule(abc.ABC):
    """A polymorphic node with an abstract base."""

    @abc.abstractmethod
    def value(self) -> float: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    level: float = 1.0

    def value(self) -> float:
        return self.level


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ramp(Schedule):
    start: int
    end: int = 10

    def __post_init__(self) -> None:
        if not self.start < self.end:
            raise ValueError(f"expected start < end (got {self.start}, {self.end})")

    def value(self) -> float:
        return 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A polymorphic node with a concrete base."""

    width: int = 8
    dropout: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conv(Layer):
    kernel: tuple[int, int] = (3, 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    learning_rate: float = 1e-3
    schedule: Schedule = Constant()

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0 (got {self.learning_rate})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop:
    metric: str
    window: int
    mode: Literal["min", "max"] = "min"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    policy: Literal["latest", "every", "last"] = "latest"
    batch_size: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exp:
    name: str = "exp"
    note: str | None = None
    shuffle: bool = True
    batch_size: int = 32
    precision: Precision = Precision.FULL
    level: Literal[0, 1, True, "auto"] = "auto"
    limit: int | float | None = None
    widths: tuple[int, ...] = ()
    splits: list[str] = dataclasses.field(default_factory=list)
    layers: tuple[Layer, ...] = ()
    learner: Learner = Learner()
    stop: Stop | None = None
    eval: Mapping[str, Reading] = FrozenDict()
    resources: Mapping[str, float] = FrozenDict()
    total: int = dataclasses.field(init=False, default=0)


EXP = Exp(
    eval=FrozenDict({"test": Reading()}),
    layers=(Layer(), Conv()),
    resources=FrozenDict({"node:10.0.0.1": 0.5}),
)
AWKWARD = [
    *["", " ", "yes", "null", "~", "1", "3e-4", "1:30", "0x1F", "010", ".inf", "2001-01-01"],
    *["- a", "a: b", "#x", "<<", "=", "'", '"', "%", "\t", "\0", "é", "\U0001f600"],
    *["a\nb", "\n", "a \n b\n\n", "  x\ny", "\x85", "a\u2028b", "x" * 300, "w w " * 60],
]


def random_exp(rng: random.Random) -> Exp:
    """A config with every kind of field, its values drawn from where text forms go wrong."""

    def number() -> float:
        return rng.choice([0.0, -0.0, 1.0, 1e16, 1e-6, 5e-324, sys.float_info.max, rng.gauss(0, 1), rng.gauss(0, 1e9)])

    def text() -> str:
        return rng.choice([*AWKWARD, "".join(chr(rng.randrange(1, 0x3000)) for _ in range(rng.randrange(8)))])

    schedules = [lambda: Constant(level=number()), lambda: Ramp(start=rng.randrange(10))]
    layers = [
        lambda: Layer(width=rng.randrange(-5, 5), dropout=rng.choice([None, number()])),
        lambda: Conv(kernel=(rng.randrange(9), rng.getrandbits(80))),
    ]
    return Exp(
        name=text(),
        note=rng.choice([None, text()]),
        shuffle=rng.random() < 0.5,
        batch_size=rng.getrandbits(40),
        precision=rng.choice(list(Precision)),
        level=rng.choice([0, 1, True, "auto"]),
        limit=rng.choice([None, 3, 3.0, number()]),
        widths=tuple(rng.randrange(-99, 99) for _ in range(rng.randrange(60))),
        splits=[text() for _ in range(rng.randrange(3))],
        layers=tuple(rng.choice(layers)() for _ in range(rng.randrange(3))),
        learner=Learner(learning_rate=abs(number()) + 1e-9, schedule=rng.choice(schedules)()),
        stop=rng.choice([None, Stop(metric=text(), window=1, mode="max")]),
        eval=FrozenDict({text(): Reading(policy="every") for _ in range(rng.randrange(3))}),
        resources=FrozenDict({text(): number() for _ in range(rng.randrange(3))}),
    )


@pytest.mark.parametrize("seed", range(60))
def test_dump_and_load_are_inverse(seed):
    exp = random_exp(random.Random(seed))
    text = dump(exp)
    again = load(text, Exp)
    assert again == exp
    assert repr(again) == repr(exp)  # equality would take 1 for 1.0, and -0.0 for 0.0
    assert dump(again) == text


@pytest.mark.parametrize("seed", range(20))
def test_any_yaml_reader_reads_the_same(seed):
    exp = random_exp(random.Random(seed))
    ours = load(dump(exp), Exp)
    theirs = yaml.safe_load(dump(exp))  # YAML 1.1, which takes yes, 1:30 and 0x1F for other things
    assert theirs["name"] == ours.name
    assert theirs["note"] == ours.note
    assert theirs["splits"] == ours.splits
    assert repr(theirs["learner"]["learning_rate"]) == repr(ours.learner.learning_rate)
    assert theirs["resources"] == dict(ours.resources)


def test_dump_is_readable():
    expected = f"""\
name: exp
note: null
shuffle: true
batch_size: 32
precision: FULL
level: auto
limit: null
widths: []
splits: []
layers:
- width: 8
  dropout: null
- class: {HERE}.Conv
  width: 8
  dropout: null
  kernel: [3, 3]
learner:
  learning_rate: 0.001
  schedule:
    class: {HERE}.Constant
    level: 1.0
stop: null
eval:
  test:
    policy: latest
    batch_size: null
resources:
  node:10.0.0.1: 0.5
"""
    assert dump(EXP) == expected


def test_an_int_in_a_float_field_is_written_as_the_float_it_stands_for():
    exp = override(EXP, {"learner": Learner(learning_rate=1)})
    assert "learning_rate: 1.0\n" in dump(exp)
    assert dump(load(dump(exp), Exp)) == dump(exp)


def test_dump_refuses_what_load_would():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Local(Layer):
        pass

    with pytest.raises(RequestError, match=r"^batch_size: expected an int \(got 'many'\)$"):
        dump(Exp(batch_size="many"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(RequestError, match=r"^layers\.0\.class: .*Local"):
        dump(Exp(layers=(Local(),)))


GOOD = [
    ("learner.learning_rate", "3e-4", 3e-4),
    ("learner.learning_rate", "3", 3.0),
    ("learner.learning_rate", 3, 3.0),
    ("learner.learning_rate", np.float64(0.5), 0.5),
    ("batch_size", "64", 64),
    ("batch_size", np.int64(64), 64),
    ("shuffle", "false", False),
    ("name", "64", "64"),
    ("name", "a = b: [c]", "a = b: [c]"),
    ("name", "none", "none"),
    ("name", "", ""),
    ("note", "none", None),
    ("note", "null", None),
    ("note", "nil", "nil"),
    ("precision", "HALF", Precision.HALF),
    ("precision", Precision.HALF, Precision.HALF),
    ("level", "1", 1),
    ("level", "true", True),
    ("level", "auto", "auto"),
    ("limit", "3", 3),
    ("limit", "3.0", 3.0),
    ("limit", "none", None),
    ("widths", "[1, 2]", (1, 2)),
    ("widths", [1, 2], (1, 2)),
    ("splits", "[a, '1']", ["a", "1"]),
    ("layers.1.kernel", "[5, 1]", (5, 1)),
    ("layers.1.kernel.0", "5", (5, 3)),
    ("layers.0.dropout", "1", 1.0),
    ("layers", "[{width: 2}]", (Layer(width=2),)),
    ("layers.0", f"{{class: {HERE}.Conv, width: 3}}", Conv(width=3)),
    ("layers.1", "{width: 3}", Layer(width=3)),  # the declared class is concrete: it counts
    ("learner.schedule", "{level: 3e-1}", Constant(level=0.3)),  # it is abstract: the present class does
    ("learner.schedule", {"level": 3}, Constant(level=3.0)),
    ("learner.schedule", f"{{class: {HERE}.Ramp, start: 1}}", Ramp(start=1)),
    ("learner.schedule", Ramp(start=1), Ramp(start=1)),
    ("stop", "{metric: a/b, window: 3}", Stop(metric="a/b", window=3)),
    ("eval", "{}", {}),
    ("eval", {"dev": Reading(policy="last")}, {"dev": Reading(policy="last")}),
    ("eval.dev", "{policy: every}", Reading(policy="every")),
    ("eval.test.policy", "every", "every"),
    ("eval.test.batch_size", "none", None),
    ("resources.TPU", "4", 4.0),
    ("resources.node:10.0.0.1", "1", 1.0),
]  # fmt: skip


def part(value, key):
    """The part of a config at a dotted key, by the plainest means."""
    if key in ("resources.TPU", "resources.node:10.0.0.1"):
        return value.resources[key.removeprefix("resources.")]
    if key == "layers.1.kernel.0":
        return value.layers[1].kernel
    for name in key.split("."):
        if isinstance(value, Mapping):
            value = value[name]
        else:
            value = value[int(name)] if name.isdigit() else getattr(value, name)
    return value


@pytest.mark.parametrize(("key", "given", "expected"), GOOD)
def test_good_overrides(key, given, expected):
    got = override(EXP, {key: given})
    assert part(got, key) == expected
    assert type(part(got, key)) is type(expected) or isinstance(expected, dict)
    top = key.partition(".")[0]
    assert all(getattr(got, f.name) == getattr(EXP, f.name) for f in dataclasses.fields(Exp) if f.name != top)
    assert load(dump(got), Exp) == got


SUCH_AS_RAMP = f"{HERE}.Constant, {HERE}.Ramp"
BAD = [
    ("batch_size", "abc", "batch_size: expected an int (got 'abc')"),
    ("batch_size", "1.5", "batch_size: expected an int (got '1.5')"),
    ("batch_size", 1.0, "batch_size: expected an int (got 1.0)"),
    ("batch_size", "true", "batch_size: expected an int (got 'true')"),
    ("batch_size", True, "batch_size: expected an int (got True)"),
    ("batch_size", "none", "batch_size: expected an int (got 'none')"),
    ("batch_size", None, "batch_size: expected an int (got None)"),
    ("batch_size", "9" * 5000, f"batch_size: expected an int (got '{'9' * 76}...)"),
    ("batch_size", "[1]", "batch_size: expected an int (got '[1]')"),
    ("shuffle", "yes", "shuffle: expected true or false (got 'yes')"),
    ("shuffle", 1, "shuffle: expected true or false (got 1)"),
    ("name", 3, "name: expected a str (got 3)"),
    ("name", ["x" * 99], f"name: expected a str (got ['{'x' * 75}...)"),
    ("limit", "few", "limit: expected an int or a finite float or null (got 'few')"),
    ("precision", "DOUBLE", "precision: expected one of HALF, FULL (got 'DOUBLE')"),
    ("level", "2", "level: expected one of 0, 1, true, auto (got '2')"),
    ("level", False, "level: expected one of 0, 1, true, auto (got False)"),
    ("widths", "1, 2", "widths: expected a list, [...], each item an int (got '1, 2')"),
    ("widths", "[1, x]", "widths.1: expected an int (got 'x')"),
    ("widths", "[1", "widths: not valid YAML: line 1: expected ',' or ']', but got '<stream end>' (got '[1')"),
    ("layers.1.kernel", "[1]", "layers.1.kernel: expected a list of 2, [an int, an int] (got [1])"),
    ("learner", "fast", "learner: expected a Learner, {field: value, ...} (got 'fast')"),
    ("learner.learning_rate", "-0.1", "learner.learning_rate must be > 0 (got -0.1)"),
    ("learner.learning_rate", "nan", "learner.learning_rate: expected a finite float (got 'nan')"),
    ("learner.learning_rate", "1e999", "learner.learning_rate: expected a finite float (got '1e999')"),
    ("learner.learning_rate", float("inf"), "learner.learning_rate: expected a finite float (got inf)"),
    ("learner.learning_rate", 10**400, f"learner.learning_rate: expected a finite float (got 1{'0' * 76}...)"),
    ("learner.schedule", f"{{class: {HERE}.Ramp}}", "learner.schedule.start is missing: expected an int"),
    ("learner.schedule", f"{{class: {HERE}.Ramp, start: 99}}", "learner.schedule: expected start < end (got 99, 10)"),
    ("learner.schedule", "{class: 3}", "learner.schedule.class: expected the name of a dataclass that is a "
     f"{HERE}.Schedule, such as {SUCH_AS_RAMP} (got 3)"),
    ("learner.schedule", f"{{class: {HERE}.Layer}}", "learner.schedule.class: expected the name of a dataclass that is "
     f"a {HERE}.Schedule, such as {SUCH_AS_RAMP} (got '{HERE}.Layer')"),
    ("learner.schedule", "{class: no_such.Thing}", "learner.schedule.class: cannot import 'no_such.Thing': no module "
     f"no_such; expected the name of a dataclass that is a {HERE}.Schedule, such as {SUCH_AS_RAMP}"),
    ("learner.schedule.class", f"{HERE}.Ramp",
     "learner.schedule.class cannot change by itself; give learner.schedule={class: NAME, ...}"),
    ("eval.test.policy", "evry", "eval.test.policy: expected one of latest, every, last (got 'evry')"),
    ("eval.dev", "{policy: every, policy: last}", "eval.dev: not valid YAML: line 1: key 'policy' is given twice "
     "(got '{policy: every, policy: last}')"),
    ("eval", "{1: {}}", "eval: not valid YAML: line 1: a key must be a string (got 1); quote it (got '{1: {}}')"),
    ("eval", {1: {}}, "eval: expected names that are strings (got 1)"),
    ("stop.window", "3", "stop.metric is missing: expected a str"),
    ("learner.lr", "1", "unknown key learner.lr (got '1'); did you mean learner.learning_rate (a finite float)?"),
    ("learning_rate", "1", "unknown key learning_rate (got '1'); did you mean learner.learning_rate (a finite float)?"),
    ("bach_size", "1", "unknown key bach_size (got '1'); "
     "did you mean batch_size (an int) or eval.test.batch_size (an int or null)?"),
    ("eval.tset.policy", "last",
     "unknown key eval.tset.policy (got 'last'); did you mean eval.test.policy (one of latest, every, last)?"),
    ("eval.test", "{polcy: last}",
     "unknown key eval.test.polcy (got 'last'); did you mean eval.test.policy (one of latest, every, last)?"),
    ("stop.windw", "3", "unknown key stop.windw (got '3'); did you mean stop.window (an int)?"),
    ("learner.zzz", "1", "unknown key learner.zzz (got '1'); learner has learning_rate, schedule"),
    ("learner.", "1", "unknown key learner. (got '1'); learner has learning_rate, schedule"),
    ("layers.2.width", "1", "unknown key layers.2.width (got '1'); "
     "did you mean layers.1.width (an int) or layers.0.width (an int) or widths (a list, [...], each item an int)?"),
    ("total", "1", "unknown key total (got '1'); the config has name, note, shuffle, batch_size, precision, level, "
     "limit, widths, splits, layers, learner, stop, eval, resources"),
    ("batch_size.x", "1", "unknown key batch_size.x (got '1'); batch_size has no parts"),
    ("eval.*.batch_size", "x", "eval.test.batch_size: expected an int or null (got 'x')"),
    ("eval.*.polcy", "last",
     "unknown key eval.*.polcy (got 'last'); did you mean eval.test.policy (one of latest, every, last)?"),
    ("eval.*.zzz", "1", "unknown key eval.*.zzz (got '1'); eval.test has policy, batch_size"),
    ("splits.*", "x", "unknown key splits.* (got 'x'); splits has no parts"),
    ("*.policy", "x", "unknown key *.policy (got 'x'); did you mean eval.test.policy (one of latest, every, last)?"),
    ("learner.*", "1", "unknown key learner.* (got '1'); learner has learning_rate, schedule"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "given", "message"), BAD)
def test_bad_overrides(key, given, message):
    with pytest.raises(RequestError) as error:
        override(EXP, {key: given})
    assert "\n" not in str(error.value)
    assert str(error.value) == message


def test_overrides_that_only_fit_together_and_in_any_order():
    exp = override(EXP, {"learner.schedule": Ramp(start=1)})
    together = {"learner.schedule.start": "20", "learner.schedule.end": "30"}
    assert override(exp, together).learner.schedule == Ramp(start=20, end=30)
    with pytest.raises(RequestError, match=r"^learner\.schedule: expected start < end \(got 20, 10\)$"):
        override(exp, {"learner.schedule.start": "20"})
    whole_and_part = {"learner.schedule.end": "5", "learner.schedule": f"{{class: {HERE}.Ramp, start: 2}}"}
    assert override(exp, whole_and_part).learner.schedule == Ramp(start=2, end=5)


def test_a_star_is_every_name_or_position_that_has_the_rest_of_the_key():
    exp = override(EXP, {"eval.dev": "{policy: every}", "eval.*.batch_size": "4"})
    assert exp.eval == {"test": Reading(batch_size=4), "dev": Reading(policy="every", batch_size=4)}
    assert override(exp, {"layers.*.kernel.*": "5"}).layers == (Layer(), Conv(kernel=(5, 5)))  # not every layer has one
    assert override(exp, {"layers.*.kernel": [5, 1]}).layers == (Layer(), Conv(kernel=(5, 1)))
    assert override(exp, {"eval.*": "{policy: last}"}).eval == dict.fromkeys(exp.eval, Reading(policy="last"))
    assert override(exp, {"resources.*": "2"}).resources == {"node:10.0.0.1": 2.0}


@pytest.mark.parametrize("order", [1, -1])
def test_a_key_without_a_star_counts_more(order):
    exp = override(EXP, {"eval.dev": Reading()})
    both = [("eval.dev.batch_size", "2"), ("eval.*.batch_size", "8")][::order]
    assert {name: reading.batch_size for name, reading in override(exp, dict(both)).eval.items()} == {
        "test": 8,
        "dev": 2,
    }


def test_a_name_that_is_a_star_is_itself():
    exp = override(EXP, {"resources": {"*": 1.0, "TPU": 1.0}})
    assert override(exp, {"resources.*": "3"}).resources == {"*": 3.0, "TPU": 1.0}


def test_an_absent_node_is_given_field_by_field():
    exp = override(EXP, {"stop.metric": "test/accuracy", "stop.window": "100"})
    assert exp.stop == Stop(metric="test/accuracy", window=100)


def test_no_overrides_change_nothing():
    assert override(EXP, {}) is EXP
    assert override(EXP, {"batch_size": 1}).learner is EXP.learner


@pytest.mark.parametrize("seed", range(10))
def test_every_flat_key_can_be_overridden(seed):
    exp = random_exp(random.Random(seed))
    values = {key: value for key, value in flatten(exp).items() if not isinstance(value, str)}  # text would be parsed
    assert repr(override(exp, values)) == repr(exp)
    assert len(values) > 10


def test_parse_assignments():
    assert parse_assignments(["a.b=1", "c=x=y", "d=", "a.b=2"]) == {"a.b": "2", "c": "x=y", "d": ""}
    for wrong in ("a.b", "=3"):
        with pytest.raises(RequestError, match=r"expected KEY=VALUE.*got"):
            parse_assignments(["a=1", wrong])


def replaced(old: str, new: str) -> str:
    text = dump(EXP)
    assert text.count(old) == 1
    return text.replace(old, new)


BAD_TEXTS = [
    ("batch_size: 32", "batch_sise: 32", "unknown key batch_sise (got 32); did you mean batch_size (an int)?"),
    ("batch_size: 32\n", "", "batch_size is missing: expected an int"),  # though it has a default
    ("batch_size: 32", "batch_size: '32'", "batch_size: expected an int (got '32')"),
    ("batch_size: 32", "batch_size: 1\nbatch_size: 2", "not valid YAML: line 5: key 'batch_size' is given twice"),
    ("precision: FULL", "precision: f32", "precision: expected one of HALF, FULL (got 'f32')"),
    ("name: exp", "name: &a exp\nnote: *a",
     "not valid YAML: line 2: aliases are not supported; write the value again"),
    ("name: exp", "name: !!python/name:os.system",
     "not valid YAML: line 1: could not determine a constructor for the tag 'tag:yaml.org,2002:python/name:os.system'"),
    ("name: exp", "name: !!int x", "not valid YAML: invalid literal for int() with base 10: 'x'"),
    (f"    class: {HERE}.Constant\n", "", "learner.schedule.class is missing: expected the name of a dataclass that is "
     f"a {HERE}.Schedule, such as {SUCH_AS_RAMP}"),
    (f"{HERE}.Conv", "numpy.load",
     f"layers.1.class: expected the name of a dataclass that is a {HERE}.Layer, such as {HERE}.Conv "
     "(got 'numpy.load')"),
    (f"{HERE}.Conv", "os.system",
     "layers.1.class: cannot import 'os.system': neither the standard library nor a __main__ has configs; "
     f"expected the name of a dataclass that is a {HERE}.Layer, such as {HERE}.Conv"),
    ("learning_rate: 0.001", "learning_rate: -1", "learner.learning_rate must be > 0 (got -1.0)"),
    ("learning_rate: 0.001", "learning_rate: .nan", "learner.learning_rate: expected a finite float (got '.nan')"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), BAD_TEXTS)
def test_load_refuses(old, new, message):
    with pytest.raises(RequestError) as error:
        load(replaced(old, new), Exp)
    assert str(error.value) == message


@pytest.mark.parametrize("text", ["", "3", "[1]", "{", "a: b: c", "\0"])
def test_load_refuses_other_documents_in_one_line(text):
    with pytest.raises(RequestError) as error:
        load(text, Exp)
    assert "\n" not in str(error.value)


def test_load_takes_yaml_written_by_hand():
    text = replaced("learning_rate: 0.001", "learning_rate: 3e-4  # a comment").replace("[3, 3]", "\n  - 5\n  - 7")
    exp = load(text, Exp)
    assert exp.learner.learning_rate == 3e-4
    assert exp.layers[1] == Conv(kernel=(5, 7))


def test_load_says_why_a_module_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "broken_family.py").write_text("import a_missing_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RequestError, match=r"cannot import 'broken_family\.Conv': No module named 'a_missing_dep"):
        load(replaced(f"{HERE}.Conv", "broken_family.Conv"), Exp)


def test_flatten():
    flat = flatten(override(EXP, {"widths": "[1, 2]"}))
    assert list(flat) == [
        *["name", "note", "shuffle", "batch_size", "precision", "level", "limit", "widths", "splits"],
        *["layers.0.width", "layers.0.dropout"],
        *["layers.1.class", "layers.1.width", "layers.1.dropout", "layers.1.kernel"],
        *["learner.learning_rate", "learner.schedule.class", "learner.schedule.level"],
        *["stop", "eval.test.policy", "eval.test.batch_size", "resources.node:10.0.0.1"],
    ]
    assert flat["widths"] == (1, 2)
    assert flat["splits"] == ()
    assert flat["precision"] == "FULL"
    assert flat["layers.1.class"] == f"{HERE}.Conv"
    assert flatten(Exp())["eval"] == {}


def test_params_text():
    lines = params_text(override(EXP, {"name": "a\nb", "learner.learning_rate": "1e-6"})).splitlines()
    assert lines == sorted(lines)
    assert len(lines) == len(flatten(EXP))
    assert {'name : "a\\nb"', "learner.learning_rate : 1.0e-06", "layers.1.kernel : [3, 3]"} <= set(lines)


def test_diff():
    assert diff(EXP, EXP) == []
    changed = override(EXP, {"batch_size": 64, "learner.schedule": Ramp(start=2), "eval": {}, "level": 1})
    assert diff(EXP, changed) == [
        "batch_size: 32 -> 64",
        "level: auto -> 1",
        f"learner.schedule.class: {HERE}.Constant -> {HERE}.Ramp",
        "- learner.schedule.level: 1.0",
        "- eval.test.policy: latest",
        "- eval.test.batch_size: null",
        "+ learner.schedule.start: 2",
        "+ learner.schedule.end: 10",
        "+ eval: {}",
    ]
    assert diff(changed, override(changed, {"level": True})) == ["level: 1 -> true"]
    assert diff(Layer(), Conv())[0] == f"class: {HERE}.Layer -> {HERE}.Conv"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unfit:
    shape: Mapping[int, str] = FrozenDict()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alike:
    layer: Layer | Stop = Layer()


def test_a_field_that_a_config_cannot_hold_is_a_mistake_of_its_author():
    with pytest.raises(TypeError, match=r"Unfit\.shape: a config cannot hold .*Mapping\[int, str\]"):
        dump(Unfit())
    with pytest.raises(TypeError, match=r"Alike\.layer: .* give dataclasses a common base class"):
        dump(Alike())


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneOrMore:
    learner: Learner | Mapping[str, Learner] = Learner()


def test_a_dataclass_or_names_of_such():
    one = OneOrMore()
    two = override(one, {"learner": "{a: {learning_rate: 0.5}, b: {}}"})
    assert two == OneOrMore(learner=FrozenDict({"a": Learner(learning_rate=0.5), "b": Learner()}))
    for exp in (one, two):
        assert load(dump(exp), OneOrMore) == exp
    assert override(two, {"learner.b.schedule.level": "2", "learner.c": "{}"}).learner == {
        "a": Learner(learning_rate=0.5),
        "b": Learner(schedule=Constant(level=2.0)),
        "c": Learner(),
    }
    assert override(one, {"learner.learning_rate": "2"}).learner == Learner(learning_rate=2.0)
    assert override(two, {"learner": "{learning_rate: 3}"}).learner == Learner(learning_rate=3.0)
    assert "learner.a.learning_rate" in flatten(two)
    for key, value, message in [
        (
            "learner",
            "fast",
            "learner: expected a Learner, {field: value, ...}, or names of such, {name: {field: value, ",
        ),
        ("learner", "{a: 3}", "learner.a: expected a Learner, {field: value, ...} (got 3)"),
        ("learner", "{learning_rate: 3, a: {}}", "unknown key learner.a (got {})"),
        ("learner.lr", "1", "unknown key learner.lr (got '1'); did you mean learner.learning_rate (a finite float)?"),
    ]:
        with pytest.raises(RequestError, match=f"^{re.escape(message)}"):
            override(one, {key: value})


def test_frozen_dict_is_a_value():
    items = {"b": 1, "a": (2, 3)}
    frozen = FrozenDict(items)
    assert frozen == items and items == frozen and frozen == FrozenDict(reversed(items.items()))
    assert frozen != {"b": 1} and frozen != 3
    assert hash(frozen) == hash(FrozenDict(reversed(items.items())))
    assert list(frozen) == ["b", "a"] and len(frozen) == 2 and frozen["a"] == (2, 3)
    assert repr(frozen) == "FrozenDict({'b': 1, 'a': (2, 3)})"
    items["c"] = 4
    assert "c" not in frozen
    with pytest.raises(TypeError, match="unhashable"):
        hash(FrozenDict({"a": []}))


def test_frozen_dict_does_not_change():
    frozen = FrozenDict({"a": 1})
    with pytest.raises(TypeError):
        frozen["a"] = 2  # pyright: ignore[reportIndexIssue]
    with pytest.raises(AttributeError, match="cannot change"):
        frozen._items = {}
    with pytest.raises(AttributeError, match="cannot change"):
        del frozen._items


@pytest.mark.parametrize("value", [EXP, FrozenDict({"a": 1, "b": (2,)})], ids=["config", "frozen_dict"])
def test_pickle_and_copy(value):
    for again in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value), copy.copy(value)):
        assert again == value
        assert type(again) is type(value)
    assert isinstance(copy.deepcopy(EXP).eval, FrozenDict)


def test_import_is_light():
    code = "import sys, raylingvo.config; print(*{'jax', 'ray', 'tensorflow', 'numpy'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == ""
