"""Who computes an op: C++ where it is there and the device is a CPU, pure JAX elsewhere, and why not."""

import ctypes.util
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from raylingvo import ops
from raylingvo.ops import _native


@pytest.fixture(autouse=True)
def nothing_known():
    """Each test looks for the library anew."""
    yield
    for function in (_native.why_unavailable, _native._library, _native.say_once):
        function.cache_clear()


@pytest.fixture
def without_library(monkeypatch):
    monkeypatch.setenv("RAYLINGVO_OPS_LIBRARY", "/nowhere/raylingvo_ops.so")
    _native.why_unavailable.cache_clear()


def who(implementation, x=1.0):
    return _native.dispatch(implementation, xla=lambda x: x + 1, cpp=lambda x: x + 2, args=(x,)) - x


needs_cpp = pytest.mark.skipif(bool(_native.why_unavailable()), reason=_native.why_unavailable() or "-")


@needs_cpp
def test_the_one_that_was_asked_for():
    assert who("xla") == 1
    assert who("cpp") == who("auto") == 2


@needs_cpp
def test_inside_jit_it_depends_on_the_device():
    assert jax.jit(lambda x: who("auto", x))(jnp.float32(1)) == 2
    assert jax.jit(lambda x: who("xla", x))(jnp.float32(1)) == 1


def test_an_unknown_one():
    with pytest.raises(ValueError, match=r"implementation must be 'auto', 'xla' or 'cpp' \(got 'c'\)"):
        who("c")


def test_without_library_jax_computes_and_it_is_said_once(without_library, caplog):
    with caplog.at_level(logging.WARNING, "raylingvo"):
        assert [who("auto"), who("auto"), who("xla")] == [1, 1, 1]
    (message,) = [record.getMessage() for record in caplog.records]
    assert "C++ ops are not installed" in message and "/nowhere" in message and "pure JAX" in message


def test_cpp_without_library(without_library):
    with pytest.raises(RuntimeError, match=r"implementation='cpp': the C\+\+ ops are not installed .*C\+\+17 compiler"):
        who("cpp")


def test_a_file_that_is_no_library(monkeypatch, tmp_path):
    file = tmp_path / "raylingvo_ops.so"
    file.write_bytes(b"not a library")
    monkeypatch.setenv("RAYLINGVO_OPS_LIBRARY", str(file))
    _native.why_unavailable.cache_clear()
    _native._library.cache_clear()
    assert "cannot be loaded" in _native.why_unavailable()


def test_a_library_that_is_another(monkeypatch):
    monkeypatch.setenv("RAYLINGVO_OPS_LIBRARY", ctypes.util.find_library("m") or "libm.so.6")
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    _native.why_unavailable.cache_clear()
    _native._library.cache_clear()
    assert "RaylingvoFfiVersion" in _native.why_unavailable()


def library_of(**changes):
    """A library that is what is asked for, but for the changes: functions, None for those that it has not."""
    functions = dict.fromkeys(_native._HANDLERS, print)
    functions |= {"RaylingvoFfiVersion": lambda: 1, "RaylingvoInterface": lambda: _native._INTERFACE, **changes}
    return SimpleNamespace(**{name: function for name, function in functions.items() if function})


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"RaylingvoSamplePoints": None}, "it lacks RaylingvoSamplePoints"),
        ({"RaylingvoInterface": None}, "it lacks RaylingvoInterface"),
        ({"RaylingvoInterface": lambda: 0}, rf"interface 0, not {_native._INTERFACE}"),
    ],
)
def test_a_library_of_another_version_is_not_used_and_it_is_said_once(monkeypatch, caplog, changes, what):
    monkeypatch.setattr(_native, "_library", lambda: library_of(**changes))
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    _native.why_unavailable.cache_clear()
    with caplog.at_level(logging.WARNING, "raylingvo"):
        assert [who("auto"), who("auto")] == [1, 1]
    (message,) = [record.getMessage() for record in caplog.records]
    assert what in message and "pip install -e ." in message and "pure JAX" in message
    with pytest.raises(RuntimeError, match=r"implementation='cpp': .*not those of this raylingvo"):
        who("cpp")
    monkeypatch.undo()


@needs_cpp
def test_all_handlers_are_registered_by_name():
    library = Path(_native.library_path()).read_bytes()
    in_library = set(re.findall(rb"\0(Raylingvo\w+)(?=\0)", library))
    assert in_library >= {name.encode() for name in _native._HANDLERS}
    others = {name.decode() for name in in_library} - {*_native._HANDLERS, "RaylingvoFfiVersion", "RaylingvoInterface"}
    assert not others


@needs_cpp
def test_vmap_is_one_call_after_the_other():
    boxes = jnp.array([[[0.0, 0, 0, 2, 2, 2, 0]], [[1.0, 0, 0, 2, 2, 2, 0]]])
    found = jax.vmap(lambda a: ops.pairwise_iou3d(a, boxes[0]))(boxes)
    assert found[:, 0, 0].tolist() == pytest.approx([1, 1 / 3], abs=1e-4)


@needs_cpp
def test_a_library_for_a_newer_jaxlib_is_not_used(monkeypatch):
    monkeypatch.setattr(_native, "_library", lambda: library_of(RaylingvoFfiVersion=lambda: 999))
    _native.why_unavailable.cache_clear()
    assert "built for XLA FFI 0.999, this jaxlib has 0." in _native.why_unavailable()
    monkeypatch.undo()
