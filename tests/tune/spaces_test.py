"""Search spaces: their text, their draws, their types, and what is said about wrong ones."""

from __future__ import annotations

import dataclasses
import enum
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylingvo.config import FrozenDict, override
from raylingvo.errors import RequestError
from raylingvo.tune.spaces import (
    Choice,
    Grid,
    LogUniform,
    Normal,
    QUniform,
    RandInt,
    Space,
    Uniform,
    all_values,
    combinations,
    draws,
    examples,
    parse,
    typed,
)

HERE = __name__  # under which the classes below are written
NAMES = "uniform, loguniform, quniform, randint, normal, choice, grid"
LIKE = "a space, such as loguniform(1e-4, 1e-1), choice(adam, sgd) or grid(1, 2)"


class Precision(enum.Enum):
    HALF = "bf16"
    FULL = "f32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    learning_rate: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.99)

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0 (got {self.learning_rate})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sgd(Learner):
    momentum: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    policy: Literal["latest", "every"] = "latest"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and not self.batch_size >= 1:
            raise ValueError(f"batch_size must be >= 1 (got {self.batch_size})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exp:
    name: str = "exp"
    note: str | None = None
    shuffle: bool = True
    batch_size: int = 32
    dropout: float | None = None
    limit: int | float | None = None
    step: int | Literal["latest"] = "latest"
    precision: Precision = Precision.FULL
    learner: Learner = Learner()
    eval: Mapping[str, Reading] = FrozenDict({"dev": Reading(), "test": Reading()})


EXP = Exp()

floats = st.floats(allow_nan=False, allow_infinity=False, width=64)
ordered = st.tuples(floats, floats).filter(lambda pair: pair[0] < pair[1])
uniforms = ordered.map(lambda pair: Uniform(*pair))
loguniforms = ordered.filter(lambda pair: pair[0] > 0).map(lambda pair: LogUniform(*pair))
normals = st.tuples(floats, floats.filter(lambda std: std > 0)).map(lambda given: Normal(*given))
randints = st.tuples(st.integers(), st.integers(1, 2**63 - 1)).map(lambda given: RandInt(given[0], sum(given)))
texts = st.one_of(
    st.text(max_size=8),
    st.text("ab ,[]{}()'\":\\\n", max_size=8),
    st.sampled_from(
        ["a, b", "'a'", '"', "it's", "[1, 2]", "{a: 'x, y'}", "", " a", "#x", "none", "a: b", "\x85", "\ufeff"]
    ),
)
items = st.lists(texts, min_size=1, max_size=4, unique=True).map(tuple)


@st.composite
def quniforms(draw: st.DrawFn) -> QUniform:
    """Of ints, or of floats of three decimals; with at least one multiple."""
    low, q, more = draw(st.integers(-1000, 1000)), draw(st.integers(1, 300)), draw(st.integers(0, 1000))
    high = low + q + more
    return QUniform(low, high, q) if draw(st.booleans()) else QUniform(low / 1000, high / 1000, q / 1000)


spaces = st.one_of(uniforms, loguniforms, normals, randints, quniforms(), items.map(Choice), items.map(Grid))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Text.


@given(spaces)
def test_a_space_is_its_text(space):
    again = parse("key", str(space))
    assert again == space
    assert str(again) == str(space)
    assert "\n" not in str(space)


@given(st.one_of(uniforms, loguniforms, normals, randints, quniforms()))
def test_what_is_read_from_text_draws_the_same(space):
    assert parse("key", str(space)).draw(rng()) == space.draw(rng())


PARSED = [
    ("uniform(0, 1)", Uniform(0, 1)),
    ("  loguniform ( 1e-4,1e-1 ) ", LogUniform(1e-4, 1e-1)),
    ("quniform(8, 64, 8)", QUniform(8, 64, 8)),
    ("randint(-1, 4)", RandInt(-1, 4)),
    ("normal(0, 1.5)", Normal(0, 1.5)),
    ("choice(adam, sgd)", Choice(("adam", "sgd"))),
    ("choice([1, 2], [3])", Choice(("[1, 2]", "[3]"))),
    ("choice({class: Sgd, momentum: 0.9}, {class: Adam})", Choice(("{class: Sgd, momentum: 0.9}", "{class: Adam}"))),
    ("choice({a: ['x, ]', 1], b: 2}, c)", Choice(("{a: ['x, ]', 1], b: 2}", "c"))),
    ("choice('a, b', \"c, \\\"d\", 'it''s', '')", Choice(("a, b", 'c, "d', "it's", ""))),
    ("choice(it's, don't)", Choice(("it's", "don't"))),
    ("choice(f(x), g)", Choice(("f(x)", "g"))),
    ("choice(a b)", Choice(("a b",))),
    ("grid(1,2,3)", Grid(("1", "2", "3"))),
    ("[0, [1, 2]]", Choice(("0", "[1, 2]"))),
    ([0, 0.1, 1e-5], Choice(("0", "0.1", "1e-05"))),
    ([None, True, "a, b", [1, "x, y"], {"a": None}], Choice(("none", "true", "a, b", "[1, 'x, y']", "{a: null}"))),
]


@pytest.mark.parametrize(("text", "space"), PARSED)
def test_parse(text, space):
    assert parse("key", text) == space


def test_equal_numbers_have_equal_texts():
    assert str(Uniform(0, 1)) == str(Uniform(0.0, 1.0)) == "uniform(0, 1)"
    assert str(QUniform(8, 64, 8)) == str(QUniform(8.0, 64.0, 8.0)) == "quniform(8, 64, 8)"
    assert str(LogUniform(1e-5, 1e16)) == "loguniform(1e-05, 1e+16)"


def test_texts_are_quoted_only_where_they_must_be():
    assert str(Choice(("a, b", "[1, 2]", "it's", "", 0.5, None, True))) == (
        """choice("a, b", [1, 2], it's, "", 0.5, none, true)"""
    )


UNPARSED = [
    ("logunif(1, 2)", f"no space 'logunif'; did you mean loguniform? (spaces: {NAMES})"),
    ("Uniform(1, 2)", f"no space 'Uniform'; did you mean uniform or quniform or loguniform? (spaces: {NAMES})"),
    ("NORMAL(1, 2)", f"no space 'NORMAL'; did you mean normal or uniform? (spaces: {NAMES})"),
    ("beta(1, 2)", f"no space 'beta' (spaces: {NAMES})"),
    ("0.1", f"expected {LIKE} (got '0.1'; spaces: {NAMES})"),
    ("uniform(0, 1", f"expected {LIKE} (got 'uniform(0, 1'; spaces: {NAMES})"),
    (0.1, f"expected {LIKE} (got 0.1; spaces: {NAMES})"),
    ("uniform(1)", "expected uniform(low, high) (got 'uniform(1)')"),
    ("uniform()", "expected uniform(low, high) (got 'uniform()')"),
    ("uniform(0, 1, 2)", "expected uniform(low, high) (got 'uniform(0, 1, 2)')"),
    ("quniform(0, 1)", "expected quniform(low, high, q) (got 'quniform(0, 1)')"),
    ("normal(0)", "expected normal(mean, std) (got 'normal(0)')"),
    ("uniform(0, x)", "'uniform(0, x)': high must be a finite number (got 'x')"),
    ("uniform(nan, 1)", "'uniform(nan, 1)': low must be a finite number (got 'nan')"),
    ("uniform(0, 1e999)", "'uniform(0, 1e999)': high must be a finite number (got inf)"),
    ("loguniform(1, true)", "'loguniform(1, true)': high must be a finite number (got True)"),
    ("quniform(0.5, 1, q)", "'quniform(0.5, 1, q)': q must be a finite number (got 'q')"),
    ("normal(x, 1)", "'normal(x, 1)': mean must be a finite number (got 'x')"),
    ("randint(0, 2.5)", "'randint(0, 2.5)': high must be an int (got 2.5)"),
    ("randint(false, 2)", "'randint(false, 2)': low must be an int (got False)"),
    ("uniform(1, 1)", "'uniform(1, 1)': low must be < high (got 1.0, 1.0)"),
    ("loguniform(2, 1)", "'loguniform(2, 1)': low must be < high (got 2.0, 1.0)"),
    ("quniform(2, 1, 1)", "'quniform(2, 1, 1)': low must be < high (got 2, 1)"),
    ("randint(1, 1)", "'randint(1, 1)': low must be < high (got 1, 1)"),
    ("loguniform(0, 1)", "'loguniform(0, 1)': low must be > 0 (got 0.0)"),
    ("quniform(0, 1, 0)", "'quniform(0, 1, 0)': q must be > 0 (got 0)"),
    ("normal(0, 0)", "'normal(0, 0)': std must be > 0 (got 0.0)"),
    ("quniform(1, 2, 5)", "'quniform(1, 2, 5)': no multiple of q is in low to high (got low 1, high 2, q 5)"),
    ("quniform(0, 1, 1e-30)", "'quniform(0, 1, 1e-30)': q must be larger: it has more than 2^63 multiples "
     "in low to high (got low 0.0, high 1.0, q 1e-30)"),
    (f"randint(0, {2**63})", f"'randint(0, {2**63})': high - low must be < 2^63 (got low 0, high {2**63})"),
    ("choice()", "'choice()': there must be at least one item"),
    ("grid( )", "'grid( )': there must be at least one item"),
    ([], "[]: there must be at least one item"),
    ("choice(a,, b)", "'choice(a,, b)': there is nothing between two commas, or after the last; an empty text is ''"),
    ("uniform(1, 2,)", "'uniform(1, 2,)': there is nothing between two commas, or after the last; an empty text is ''"),
    ("choice(a, b, a)", "'choice(a, b, a)': a is given twice"),
    ("grid('x, y', \"x, y\")", "'grid(\\'x, y\\', \"x, y\")': \"x, y\" is given twice"),
    ([1, "1"], "[1, '1']: 1 is given twice"),
    ("choice([1, 2)", "'choice([1, 2)': a ] is missing"),
    ("choice({a: [1)", "'choice({a: [1)': a ] is missing"),
    ("choice(a])", "'choice(a])': a ] closes nothing"),
    ("choice([1})", "'choice([1})': a } closes nothing"),
    ("choice('a)", "\"choice('a)\": a ' is not closed"),
    ("choice('a' b)", "\"choice('a' b)\": 'a' b is more than one text in quotes"),
    ("choice(\"\\q\")", "'choice(\"\\\\q\")': not valid YAML: line 1: found unknown escape character 'q'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), UNPARSED)
def test_parse_refuses(text, message):
    with pytest.raises(RequestError) as error:
        parse("a.key", text)
    assert str(error.value) == f"--param a.key: {message}"


# Draws.


@given(spaces.filter(lambda space: not isinstance(space, Grid)), st.integers(0, 2**32))
def test_draws_are_plain_values_of_the_space(space, seed):
    value = space.draw(rng(seed))
    assert type(value) in (int, float, str)
    if isinstance(space, Choice):
        assert value in space.items
    elif isinstance(space, RandInt):
        assert type(value) is int and space.low <= value < space.high
    elif not isinstance(space, Normal):
        assert space.low <= value <= space.high
        assert type(value) is (type(space.q) if isinstance(space, QUniform) else float)


@given(quniforms())
def test_quniform_values_are_all_the_multiples_between_the_ends(space):
    values = space.values()
    assert len(values) == space.size
    assert all(space.low <= value <= space.high for value in values)
    steps = [round(value / space.q) for value in values]
    assert steps == list(range(steps[0], steps[0] + len(steps)))
    assert values == tuple(float(f"{step * space.q:.3f}") for step in steps)
    assert values[0] - space.q < space.low + 1e-9 and values[-1] + space.q > space.high - 1e-9
    assert space.draw(rng()) in values


@pytest.mark.parametrize("space", [QUniform(0.1, 0.5, 0.1), RandInt(-2, 3), Choice(("a", "b", None, 1, 0.5))])
def test_every_value_of_a_finite_space_is_as_likely(space):
    generator = rng()
    counts = Counter(space.draw(generator) for _ in range(5000))
    assert set(counts) == set(space.values())
    assert all(abs(count - 1000) < 150 for count in counts.values())  # 5 standard deviations


def uniformity(shares: list[float]) -> float:
    """The Kolmogorov-Smirnov distance from a uniform distribution on [0, 1]."""
    return max(abs(share - (i + 0.5) / len(shares)) for i, share in enumerate(sorted(shares)))


def test_uniform_is_uniform_and_loguniform_is_in_the_logarithm():
    generator = rng()
    drawn = [Uniform(-1, 3).draw(generator) for _ in range(4000)]
    assert uniformity([(value + 1) / 4 for value in drawn]) < 0.03  # p is about 0.001
    logs = [math.log10(LogUniform(1e-4, 1e-1).draw(generator)) for _ in range(4000)]
    assert uniformity([(log + 4) / 3 for log in logs]) < 0.03


def test_uniform_bounds_may_be_further_apart_than_a_float_can_say():
    generator = rng()
    drawn = [Uniform(-1.5e308, 1.5e308).draw(generator) for _ in range(100)]
    assert min(drawn) < -1e308 and max(drawn) > 1e308
    assert all(map(math.isfinite, drawn))


def test_loguniform_stays_in_narrow_bounds():
    for low in (1e-4, 3e-4, 0.1, 0.7, 5.0, 123.0, 1e10):
        space = LogUniform(low, math.nextafter(low, math.inf))
        assert space.draw(rng()) in (space.low, space.high)


def test_normal_has_its_mean_and_standard_deviation():
    generator = rng()
    drawn = np.array([Normal(3, 0.5).draw(generator) for _ in range(4000)])
    assert abs(drawn.mean() - 3) < 0.04
    assert abs(drawn.std() - 0.5) < 0.03


def test_a_grid_is_not_drawn_from():
    with pytest.raises(TypeError, match=r"^the values of a grid are enumerated, not drawn \(got grid\(1, 2\)\)$"):
        Grid(("1", "2")).draw(rng())


@given(st.dictionaries(st.text(max_size=5), spaces, min_size=1, max_size=5), st.integers(0, 9), st.integers(0, 2**40))
def test_a_drawn_value_depends_on_its_own_key_alone(given_spaces, sample, seed):
    values = draws(given_spaces, sample, seed)
    assert list(values) == [key for key, space in given_spaces.items() if not isinstance(space, Grid)]
    for key, value in values.items():
        assert repr(draws({key: given_spaces[key]}, sample, seed)) == repr({key: value})


def test_draws_of_different_keys_samples_and_seeds_differ():
    space = {"a": Uniform(0, 1), "b": Uniform(0, 1)}
    drawn = [value for sample in range(5) for seed in range(5) for value in draws(space, sample, seed).values()]
    assert len(set(drawn)) == 50


def test_draws_remain_what_they_were():
    space = {"learner.learning_rate": LogUniform(1e-4, 1e-1), "batch_size": QUniform(8, 64, 8), "n": Normal(0, 1)}
    # As they were when this was written: a sweep that goes on, in another process, must get the same.
    drawn = {"learner.learning_rate": 0.002862975510485916, "batch_size": 48, "n": 0.6514787586174382}
    assert draws(space, 3, 7) == pytest.approx(drawn, rel=1e-12)  # logarithms differ in the last bit by machine


# All values.


def test_combinations_are_those_of_the_grids_in_order():
    given_spaces = {"b": Grid(("1", "2")), "x": Uniform(0, 1), "a": Grid((True, None, "z"))}
    found = combinations(given_spaces)
    assert [tuple(values.items()) for values in found] == [
        (("b", b), ("a", a)) for b in ("1", "2") for a in (True, None, "z")
    ]


def test_no_grid_is_one_empty_combination():
    assert combinations({"x": Uniform(0, 1), "y": Choice(("1",))}) == [{}]
    assert combinations({}) == [{}]


def test_all_values_are_those_of_every_finite_space():
    given_spaces = {"a": Choice((1, 2)), "b": Grid(("x",)), "c": RandInt(3, 5), "d": QUniform(0.1, 0.2, 0.1)}
    assert all_values(given_spaces) == [
        {"a": a, "b": "x", "c": c, "d": d} for a in (1, 2) for c in (3, 4) for d in (0.1, 0.2)
    ]


@pytest.mark.parametrize(
    ("space", "values"),
    [
        (Choice((1, 2, 3)), (1, 2, 3)),
        (Grid(("x", "y")), ("x", "y")),
        (Uniform(0, 1), (0, 1)),
        (LogUniform(1, 2), (1, 2)),
        (QUniform(0.1, 0.35, 0.1), (0.1, 0.3)),
        (RandInt(3, 9), (3, 8)),
        (Normal(5, 1), (5,)),
    ],
)
def test_examples_of_a_space_are_its_values_or_ends(space, values):
    assert examples(space) == values


@pytest.mark.parametrize("space", [Uniform(0, 1), LogUniform(1, 2), Normal(0, 1)])
def test_all_values_refuses_a_space_without_a_list(space):
    with pytest.raises(RequestError) as error:
        all_values({"a": Choice(("1",)), "a.key": space})
    assert str(error.value) == (
        f"--search grid: {space} of a.key has no list of values; use grid(...), choice, randint or quniform"
    )
    assert space.size is None
    with pytest.raises(ValueError, match="has no list of values"):
        space.values()


@pytest.mark.parametrize("enumerate_", [all_values, combinations])
def test_too_many_combinations_are_refused_before_they_are_made(enumerate_):
    thousand = Grid(tuple(range(1000)))
    assert len(enumerate_({"a": thousand, "b": Grid(tuple(range(100)))})) == 100_000
    with pytest.raises(RequestError) as error:
        enumerate_({"a": thousand, "b": Grid(tuple(range(101)))})
    assert str(error.value) == ("--param: at most 100000 combinations of values can be tried (got 1000 of a, 101 of b)")


def test_the_size_of_a_large_space_is_known_at_once():
    assert RandInt(0, 10**18).size == 10**18
    assert QUniform(0, 1, 1e-18).size == 10**18 + 1
    with pytest.raises(RequestError, match=r"got 1000000000000000000 of a\)$"):
        all_values({"a": RandInt(0, 10**18)})


# Types.

TYPED = [
    ("batch_size", "choice(8, 16)", Choice((8, 16))),
    ("dropout", "choice(0, 1e-1, none)", Choice((0.0, 0.1, None))),
    ("dropout", [0, 0.1, None], Choice((0.0, 0.1, None))),
    ("shuffle", "grid(true, false)", Grid((True, False))),
    ("name", "choice(true, 1, none, 'a, b')", Choice(("true", "1", "none", "a, b"))),
    ("note", "choice(x, none)", Choice(("x", None))),
    ("limit", "choice(1, 1.5, null)", Choice((1, 1.5, None))),
    ("step", "choice(3, latest)", Choice((3, "latest"))),
    ("precision", "choice(HALF, FULL)", Choice(("HALF", "FULL"))),
    ("learner.betas", "choice([0.9, 0.99], [0.5])", Choice(("[0.9, 0.99]", "[0.5]"))),
    ("learner.betas.0", "choice(0.5, 0.9)", Choice(("0.5", "0.9"))),
    ("learner", f"choice({{class: {HERE}.Sgd, momentum: 0.9}}, {{}})",
     Choice((f"{{class: {HERE}.Sgd, momentum: 0.9}}", "{}"))),
    ("eval.dev.batch_size", "grid(1, none)", Grid((1, None))),
    ("eval.*.batch_size", "grid(1, none)", Grid((1, None))),
    ("eval.*.policy", "choice(every)", Choice(("every",))),
    ("learner.learning_rate", "loguniform(1e-4, 1e-1)", LogUniform(1e-4, 1e-1)),
    ("dropout", "normal(0, 1)", Normal(0, 1)),
    ("dropout", "randint(0, 2)", RandInt(0, 2)),
    ("batch_size", "randint(1, 8)", RandInt(1, 8)),
    ("limit", "uniform(0, 1)", Uniform(0, 1)),
    ("batch_size", "quniform(8, 64, 8)", QUniform(8, 64, 8)),
    ("batch_size", "quniform(8.0, 64, 8)", QUniform(8, 64, 8)),
    ("eval.*.batch_size", "quniform(8.0, 64, 8)", QUniform(8, 64, 8)),
    ("dropout", "quniform(0, 4, 2)", QUniform(0.0, 4.0, 2.0)),
    ("dropout", "quniform(0, 1, 0.25)", QUniform(0.0, 1.0, 0.25)),
    ("limit", "quniform(0, 4, 2)", QUniform(0, 4, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("key", "text", "space"), TYPED)
def test_typed(key, text, space):
    found = typed(EXP, key, parse(key, text))
    assert repr(found) == repr(space)  # equality would take 1 for 1.0
    assert repr(typed(EXP, key, found)) == repr(space)
    assert repr(typed(EXP, key, parse(key, str(found)))) == repr(space)
    if not isinstance(found, Normal):  # which has no bounds
        for value in found.values() if found.size else [found.draw(rng())]:
            override(EXP, {key: value})


UNTYPED = [
    ("batch_size", "choice(8, x)", "--param batch_size: expected an int (got 'x')"),
    ("batch_size", "grid(8, 1.5)", "--param batch_size: expected an int (got '1.5')"),
    ("precision", "choice(HALF, f32)", "--param precision: expected one of HALF, FULL (got 'f32')"),
    ("learner.lr", "uniform(1, 2)", "--param learner.lr: unknown key learner.lr (got 1.0); "
     "did you mean learner.learning_rate (a finite float)?"),
    ("learner.learning_rate", "choice(1, -1)", "--param learner.learning_rate must be > 0 (got -1.0)"),
    ("learner.learning_rate", "uniform(0, 1)", "--param learner.learning_rate must be > 0 (got 0.0)"),
    ("learner.learning_rate", "normal(-1, 1)", "--param learner.learning_rate must be > 0 (got -1.0)"),
    ("eval.dev.batch_size", "randint(0, 8)", "--param eval.dev.batch_size must be >= 1 (got 0)"),
    ("eval.dev.batch_size", "quniform(-8, 8, 8)", "--param eval.dev.batch_size must be >= 1 (got -8)"),
    ("eval.*.batch_size", "choice(0)", "--param eval.*.batch_size: eval.dev.batch_size must be >= 1 (got 0)"),
    ("learner", "choice({momentum: 1})", "--param learner: unknown key learner.momentum (got 1); "
     "learner has learning_rate, betas"),
    ("dropout", "choice(1, 1.0)", "--param dropout: 'choice(1, 1.0)': 1.0 is given twice"),
    ("batch_size", "uniform(8, 64)", "--param batch_size: expected an int (got 8.0); "
     "uniform(8, 64) gives floats: use randint or quniform"),
    ("batch_size", "loguniform(8, 64)", "--param batch_size: expected an int (got 8.0); "
     "loguniform(8, 64) gives floats: use randint or quniform"),
    ("batch_size", "normal(8, 1)", "--param batch_size: expected an int (got 8.0); "
     "normal(8, 1) gives floats: use randint or quniform"),
    ("eval.test.batch_size", "uniform(0.5, 1)", "--param eval.test.batch_size: expected an int or null (got 0.5); "
     "uniform(0.5, 1) gives floats: use randint or quniform"),
    ("batch_size", "quniform(1, 2, 0.5)", "--param batch_size: expected an int (got 1.0); "
     "quniform(1, 2, 0.5) gives floats: give whole low, high and q"),
    ("name", "uniform(0, 1)", "--param name: expected a str (got 0.0)"),
    ("name", "randint(0, 2)", "--param name: expected a str (got 0)"),
    ("name", "quniform(0, 2, 1)", "--param name: expected a str (got 0)"),
    ("shuffle", "uniform(0, 1)", "--param shuffle: expected true or false (got 0.0)"),
    ("shuffle", "randint(0, 2)", "--param shuffle: expected true or false (got 0)"),
    ("learner", "uniform(0, 1)", "--param learner: expected a Learner, {field: value, ...} (got 0.0)"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "text", "message"), UNTYPED)
def test_typed_refuses(key, text, message):
    with pytest.raises(RequestError) as error:
        typed(EXP, key, parse(key, text))
    assert str(error.value) == message


@pytest.mark.parametrize("text", ["randint(1, 9)", "quniform(1, 9, 2)", "quniform(1.0, 8, 1)"])
def test_the_greatest_value_is_checked_not_high(text):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Small:
        width: int = 1

        def __post_init__(self) -> None:
            if not self.width < 8:
                raise ValueError(f"width must be < 8 (got {self.width})")

    assert typed(Small(), "width", RandInt(1, 8)) == RandInt(1, 8)
    assert typed(Small(), "width", QUniform(1, 7, 2)) == QUniform(1, 7, 2)
    with pytest.raises(RequestError, match=r"^--param width must be < 8 \(got 8\)$"):
        typed(Small(), "width", parse("width", text))


def test_an_int_field_is_known_by_its_value_where_no_int_nearby_will_do():
    exp = override(EXP, {"eval.dev.batch_size": 4})
    with pytest.raises(
        RequestError, match=r"\(got -1\.5\); uniform\(-1\.5, 0\) gives floats: use randint or quniform$"
    ):
        typed(exp, "eval.dev.batch_size", Uniform(-1.5, 0))


def test_typed_takes_every_kind_of_space():
    kinds = {type(parse("key", text)) for _, text, _ in TYPED}
    assert kinds == {Uniform, LogUniform, QUniform, RandInt, Normal, Choice, Grid}
    assert all(issubclass(kind, Space) for kind in kinds)


def test_neither_jax_nor_ray_is_imported():
    code = "import sys, raylingvo.tune.spaces; sys.exit(bool({'jax', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
