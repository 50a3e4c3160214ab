"""einsum in C++ against float64: any order of axes, gradients of both orders, vmap, each instruction set."""

import functools
import string
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.ops import _native
from raylingvo.ops.product import _einsum_cpp, _einsum_plan, einsum

needs_cpp = pytest.mark.skipif(bool(_native.why_unavailable()), reason=f"no C++ ops: {_native.why_unavailable()}")
# Those of layers, and sizes around those of a tile of the widest registers (12 rows, 32 columns, blocks of 384).
CASES = {
    "bd,df->bf": [{"b": 25, "d": 385, "f": 65}, {"b": 12, "d": 384, "f": 32}, {"b": 1, "d": 7, "f": 16}],
    "nd,cd->nc": [{"n": 13, "d": 17, "c": 100}, {"n": 530, "d": 40, "c": 48}],  # panels that are copied, transposed
    "dk,td->kt": [{"d": 40, "k": 37, "t": 41}],  # left and right change places
    "tbi,tbo->io": [{"t": 30, "b": 30, "i": 13, "o": 70}],  # two axes that are one
    "btnh,bsnh->bnts": [{"b": 2, "t": 9, "n": 3, "h": 20, "s": 11}],
    "bnts,bsnh->btnh": [{"b": 2, "t": 9, "n": 3, "h": 20, "s": 11}],
    "btkgh,bskh->bkgts": [{"b": 2, "t": 9, "k": 2, "g": 3, "h": 8, "s": 11}],
    "btd,dnh->btnh": [{"b": 2, "t": 9, "d": 50, "n": 4, "h": 12}],
    "egcd,edf->egcf": [{"e": 3, "g": 2, "c": 5, "d": 30, "f": 33}],
    "bdx,df->bf": [{"b": 5, "d": 9, "f": 8, "x": 1}],  # an axis of size 1 is in one array only
}
LARGE = {
    "nc,cd->nd": {"n": 300, "c": 800, "d": 300},  # parts of columns, and of rows, for several threads
    "cn,dc->nd": {"n": 540, "c": 400, "d": 900},  # several groups of copied panels
}
KEYS = [(equation, i) for equation, sizes in CASES.items() for i in range(len(sizes))]


def arrays(equation, sizes, seed=0):
    rng = np.random.default_rng(seed)
    parts = equation.partition("->")[0].split(",")
    return [jnp.asarray(rng.normal(size=[sizes[axis] for axis in part]), jnp.float32) for part in parts]


def assert_close(ours, expected):
    assert ours.shape == expected.shape and ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5 * float(np.abs(expected).max(initial=1e-9)))


@needs_cpp
@pytest.mark.parametrize("equation, case", KEYS)
def test_cpp_equals_float64(equation, case):
    x, y = arrays(equation, CASES[equation][case])
    ours = einsum(equation, x, y, implementation="cpp")
    assert_close(ours, np.einsum(equation, np.asarray(x, np.float64), np.asarray(y, np.float64)))


@needs_cpp
@pytest.mark.parametrize("equation", LARGE)
def test_cpp_equals_float64_in_parts(equation):
    x, y = arrays(equation, LARGE[equation])
    expected = np.einsum(equation, np.asarray(x, np.float64), np.asarray(y, np.float64), optimize=True)
    assert_close(einsum(equation, x, y, implementation="cpp"), expected)


@pytest.fixture(params=[4, 8])
def narrower(request, monkeypatch):
    """Registers of so many floats; what was compiled for others is forgotten, before and after."""
    monkeypatch.setattr(_einsum_cpp, "MAX_WIDTH", request.param)
    jax.clear_caches()
    yield
    jax.clear_caches()


@needs_cpp
def test_cpp_equals_float64_with_narrower_registers(narrower):
    for equation, case in KEYS:
        test_cpp_equals_float64(equation, case)


@needs_cpp
def test_one_thread_and_several_agree_to_the_bit(tmp_path):
    program = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[2])])
import jax, numpy as np
from raylingvo.ops import einsum
x, y = (jax.random.normal(jax.random.key(i), (400, 400)) for i in range(2))
np.save(sys.argv[1], einsum("nc,dc->nd", x, y, implementation="cpp"))
"""
    results = []
    for threads in (1, 2):
        file = tmp_path / f"{threads}.npy"
        # As many threads as the process may use cores.
        subprocess.run([sys.executable, "-c", program, str(file), str(threads)], check=True)
        results.append(np.load(file))
    assert (results[0] == results[1]).all()


@needs_cpp
@given(st.data())
@settings(max_examples=30, deadline=None)
def test_cpp_equals_float64_whatever_the_axes(data):
    kinds = ["xyr", "xr", "yr", "xy"]
    axes = {
        letter: data.draw(st.sampled_from(kinds)) for letter in string.ascii_lowercase[: data.draw(st.integers(2, 5))]
    }
    sizes = {letter: data.draw(st.integers(1, 6)) for letter in axes}
    parts = [data.draw(st.permutations([letter for letter in axes if part in axes[letter]])) for part in "xyr"]
    equation = _einsum_plan.Equation(*("".join(part) for part in parts))
    shapes = [[sizes[letter] for letter in part] for part in equation[:2]]
    text = f"{equation.x},{equation.y}->{equation.result}"
    x, y = arrays(text, sizes)
    if _einsum_plan.make_plan(equation, *shapes) is None:
        with pytest.raises(ValueError, match="cannot do"):
            einsum(text, x, y, implementation="cpp")
        return
    ours = einsum(text, x, y, implementation="cpp")
    assert_close(ours, np.einsum(text, np.asarray(x, np.float64), np.asarray(y, np.float64)))


@needs_cpp
@pytest.mark.parametrize("equation", CASES)
def test_gradients_of_cpp_in_both_modes(equation):
    x, y = arrays(equation, CASES[equation][-1])

    def results(implementation):
        def loss(x, y):
            return jnp.sin(einsum(equation, x, y, implementation=implementation)).sum()

        gradient = jax.grad(loss, (0, 1))
        return gradient(x, y), jax.jvp(gradient, (x, y), (y.sum() * x, x.sum() * y))[1]

    ours, expected = jax.jit(lambda: (results("cpp"), results("xla")))()
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


@needs_cpp
@pytest.mark.parametrize("in_axes", [(1, 1), (0, None), (None, 2)])
def test_vmap_of_cpp(in_axes):
    xs, ys = jnp.arange(4 * 4 * 4.0).reshape(4, 4, 4), jnp.sin(jnp.arange(4 * 4 * 4.0)).reshape(4, 4, 4)
    args = [a if axis is not None else a[0] for a, axis in zip((xs, ys), in_axes, strict=True)]
    ours, expected = (
        jax.vmap(functools.partial(einsum, "bd,df->bf", implementation=which), in_axes)(*args)
        for which in ("cpp", "xla")
    )
    assert_close(ours, np.asarray(expected))


@needs_cpp
def test_nothing_leaks_into_rows_and_columns_that_there_are_not_in_cpp():
    x, y = jnp.full((13, 33), jnp.nan), jnp.ones((33, 35))
    x = x.at[:12].set(1.0)
    ours = einsum("bd,df->bf", x, y, implementation="cpp")
    assert (ours[:12] == 33).all() and jnp.isnan(ours[12]).all()


@needs_cpp
@pytest.mark.parametrize("b, d, f", [(0, 3, 4), (3, 0, 4), (2, 3, 0)])
def test_empty_arrays_of_cpp(b, d, f):
    for equation, y in (("bd,df->bf", jnp.ones((d, f))), ("bd,fd->bf", jnp.ones((f, d)))):
        product = functools.partial(einsum, equation, implementation="cpp")
        assert (product(jnp.ones((b, d)), y) == jnp.full((b, f), d)).all()
        gradient = jax.grad(lambda x, y, product=product: product(x, y).sum())(jnp.ones((b, d)), y)
        assert (gradient == jnp.full((b, d), f)).all()


def test_axes_that_the_equation_does_not_name():
    x, y = arrays("abd,fd->abf", {"a": 2, "b": 3, "d": 4, "f": 5})
    np.testing.assert_allclose(einsum("...d,fd->...f", x, y), np.einsum("abd,fd->abf", x, y), rtol=1e-5)
    np.testing.assert_allclose(einsum("...d,fd->...f", x[0, 0], y), x[0, 0] @ y.T, rtol=1e-5)


def test_auto_is_xla_for_small_products_and_other_dtypes(monkeypatch):
    monkeypatch.setattr(_einsum_cpp, "einsum", lambda *args: "cpp")
    small, large = jnp.ones((8, 8)), jnp.ones((128, 128))
    assert isinstance(einsum("ab,bc->ac", small, small), jax.Array)
    assert isinstance(einsum("ab,bc->ac", *[large.astype(jnp.bfloat16)] * 2), jax.Array)
    one_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    assert (einsum("ab,bc->ac", large, large) == "cpp") is (one_cpu and not _native.why_unavailable())
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert isinstance(einsum("ab,bc->ac", large, large), jax.Array)


def test_sums_of_bf16_can_be_f32():
    x = jnp.ones((4, 300), jnp.bfloat16)
    assert einsum("ab,cb->ac", x, x).dtype == jnp.bfloat16
    assert einsum("ab,cb->ac", x, x, preferred_element_type=jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize(
    "equation, message",
    [
        ("ab,bc", "must be like 'bd,df->bf'"),
        ("ab->ab", "must be like 'bd,df->bf'"),
        ("ab,...c->ac", "must be like"),
        ("...b,bc->c", "must be like"),
        ("aa,ac->ac", "each axis of an array by a letter of its own"),
        ("ab,bc->az", "must have axes of its arrays"),
        ("abc,bc->ab", r"x must have the axes 'abc' \(got shape \[2, 3\]\)"),
        ("ab,ac->bc", r"axis 'a' must be of one size in x and y \(got 2 and 3\)"),
    ],
)
def test_equations_that_are_wrong(equation, message):
    with pytest.raises(ValueError, match=message):
        einsum(equation, jnp.ones((2, 3)), jnp.ones((3, 4)))


def test_what_cpp_cannot_do():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="implementation must be"):
        einsum("ab,bc->ac", x, x.T, implementation="c")
    with pytest.raises(ValueError, match=r"is for float32 \(got bfloat16, bfloat16, float32\)"):
        einsum("ab,bc->ac", x.astype(jnp.bfloat16), x.T.astype(jnp.bfloat16), implementation="cpp")
    with pytest.raises(ValueError, match="cannot do 'ab,ab->'"):
        einsum("ab,ab->", x, x, implementation="cpp")


def test_without_library_xla_computes_and_cpp_says_why(monkeypatch):
    monkeypatch.setitem(einsum.__globals__, "why_unavailable", lambda: "none here")
    x = jnp.ones((64, 64))
    assert (einsum("ab,bc->ac", x, x) == 64).all()
    with pytest.raises(RuntimeError, match="implementation='cpp': none here"):
        einsum("ab,bc->ac", x, x, implementation="cpp")
