"""The library of C++ ops, and who computes an op: pure JAX or C++."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
from jax.core import Tracer

Implementation = Literal["auto", "xla", "cpp"]

# That of api_version.cc: another number when the arguments of a handler change.
_INTERFACE = 4
_HANDLERS = (
    "RaylingvoAveragePrecision3D",
    "RaylingvoBeamSearchStep",
    "RaylingvoConv2d",
    "RaylingvoConv2dInputGrad",
    "RaylingvoConv2dKernelGrad",
    "RaylingvoConv2dReluPool",
    "RaylingvoConv2dReluPoolInputGrad",
    "RaylingvoConv2dReluPoolKernelGrad",
    "RaylingvoEinsum",
    "RaylingvoHypAttention",
    "RaylingvoNonMaxSuppression3D",
    "RaylingvoPairwiseIou3D",
    "RaylingvoPointsToGrid",
    "RaylingvoSamplePoints",
    "RaylingvoShortList",
    "RaylingvoTopKHyps",
)

_LOG = logging.getLogger("raylingvo")


def dispatch(
    implementation: Implementation, *, xla: Callable[..., Any], cpp: Callable[..., Any], args: tuple, **static: Any
) -> Any:
    """xla(*args, **static) or cpp(*args, **static), which compute the same.

    implementation: "xla": pure JAX, on any device; "cpp": the C++ op, on CPUs; "auto": the C++ op if it is there and
    the only device is a CPU. Raises ValueError for another, RuntimeError for "cpp" where it is not available.
    """
    xla, cpp = functools.partial(xla, **static), functools.partial(cpp, **static)
    if implementation == "xla":
        return xla(*args)
    if implementation == "cpp":
        if why := why_unavailable():
            raise RuntimeError(f"implementation='cpp': {why}")
        return cpp(*args)
    if implementation != "auto":
        raise ValueError(f"implementation must be 'auto', 'xla' or 'cpp' (got {implementation!r})")
    if why := why_unavailable():
        say_once(why)
        return xla(*args)
    # XLA cannot split a call of ours over several devices: each of them would do it whole.
    if jax.device_count() > 1:
        return xla(*args)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(args)):
        # Inside jit: for which device is known when it is compiled.
        return jax.lax.platform_dependent(*args, cpu=cpp, default=xla)
    return cpp(*args) if jax.default_backend() == "cpu" else xla(*args)


def call(
    target: str, results: Any, *args: Any, input_output_aliases: dict[int, int] | None = None, **attributes: Any
) -> Any:
    """One call of the handler `target`, one of those above.

    results: a tree of jax.ShapeDtypeStruct. input_output_aliases: the argument (its index) in whose memory a result
    (its index) is; XLA copies it before unless nothing else reads it. attributes: numpy scalars and arrays. Under vmap
    it is one call after the other.
    """
    _register(target)
    function = jax.ffi.ffi_call(target, results, input_output_aliases=input_output_aliases, vmap_method="sequential")
    return function(*args, **attributes)


@functools.cache
def why_unavailable() -> str:
    """Why there are no C++ ops here; empty if there are."""
    path = library_path()
    if not path.is_file():
        return f"the C++ ops are not installed ({path} is missing): install raylingvo where a C++17 compiler is"
    try:
        library = _library()
    except OSError as error:
        return f"the C++ ops cannot be loaded: {error}"
    lacking = [name for name in ("RaylingvoFfiVersion", "RaylingvoInterface", *_HANDLERS) if not hasattr(library, name)]
    if lacking or library.RaylingvoInterface() != _INTERFACE:
        what = f"it lacks {lacking[0]}" if lacking else f"interface {library.RaylingvoInterface()}, not {_INTERFACE}"
        return f"the C++ ops are not those of this raylingvo ({path}: {what}): rebuild them, by `pip install -e .`"
    built = library.RaylingvoFfiVersion()
    header = Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h"
    found = dict(re.findall(r"#define XLA_FFI_API_(MAJOR|MINOR) (\d+)", header.read_text()))
    running = int(found["MAJOR"]) * 1000 + int(found["MINOR"])
    # A handler that is too new for jaxlib would make its whole CPU backend fail.
    if built // 1000 != running // 1000 or built > running:
        return f"the C++ ops were built for XLA FFI {_version(built)}, this jaxlib has {_version(running)}"
    return ""


def library_path() -> Path:
    """The library: that named by RAYLINGVO_OPS_LIBRARY (as for a build with sanitizers), else the installed one."""
    given = os.environ.get("RAYLINGVO_OPS_LIBRARY")
    if given:
        return Path(given)
    # In an editable install the package has a second folder, for what was built.
    import raylingvo.ops

    places = [Path(folder) / "raylingvo_ops.so" for folder in raylingvo.ops.__path__]
    return next((place for place in places if place.is_file()), places[0])


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(library_path()))


@functools.cache
def _register(target: str) -> None:
    assert target in _HANDLERS
    handler = getattr(_library(), target)
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(handler), platform="cpu")


@functools.cache
def say_once(why: str) -> None:
    """Warns that the C++ ops are off, the first time."""
    _LOG.warning("%s; pure JAX computes instead", why)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000}"
