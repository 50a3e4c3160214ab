"""What the search drivers that are loops around a model ask of their arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from raylingvo.ops._native import Implementation
from raylingvo.ops.search._beam_search_attributes import NO_ENTRIES

# n rows, V vocabulary.


class Scored(NamedTuple):
    """What a callback returned: scores [n, V], its carry, and what else it was to return."""

    scores_nxV: jax.Array
    carry: Any
    more: Any = None


def check_implementation(op: str, implementation: Implementation) -> None:
    """Raises unless pure JAX may do it: there is no other."""
    if implementation == "cpp":
        raise RuntimeError(
            f"implementation='cpp': {op} has no C++ twin, as it is a loop around the model or a function within it; "
            "use 'auto' or 'xla'"
        )
    if implementation not in ("auto", "xla"):
        raise ValueError(f"implementation must be 'auto', 'xla' or 'cpp' (got {implementation!r})")


def integers(name: str, value: Any, shape: tuple[int | None, ...]) -> jax.Array:
    """value as i32 of that shape; None: of any size."""
    array = jnp.asarray(value)
    if not _fits(array, shape) or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers {_text(shape)} (got {array.dtype}{list(array.shape)})")
    return array.astype(jnp.int32)


def floats(name: str, value: Any, shape: tuple[int | None, ...]) -> jax.Array:
    """value as f32 of that shape; None: of any size."""
    array = jnp.asarray(value)
    if not _fits(array, shape) or not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} must be floats {_text(shape)} (got {array.dtype}{list(array.shape)})")
    return array.astype(jnp.float32)


def check_token(name: str, token: int) -> None:
    if token < 0:
        raise ValueError(f"{name} must be >= 0 (got {token})")


def check_steps(max_steps: int) -> None:
    if max_steps < 1:
        raise ValueError(f"max_steps must be > 0 (got {max_steps})")


def checked(name: str, fn: Callable[..., Any], extra: str = "") -> Callable[[jax.Array, jax.Array, Any], Scored]:
    """fn(ids i32[n], step, carry), which returns scores, (scores, carry), or (scores, carry, `extra`).

    What it returns is looked at: a wrong shape there shows as an error far from here.
    """

    def scored(ids_n: jax.Array, step: jax.Array, carry: Any) -> Scored:
        returned = fn(ids_n, step, carry)
        scores_nxV, new_carry, *more = returned if isinstance(returned, tuple) else (returned, carry)
        if len(more) > (1 if extra else 0):
            raise ValueError(
                f"{name} must return scores, or (scores, carry{f'[, {extra}]' if extra else ''}) "
                f"(got a tuple of {len(returned)})"
            )
        n = len(ids_n)
        if jnp.ndim(scores_nxV) != 2 or len(scores_nxV) != n or not jnp.issubdtype(scores_nxV.dtype, jnp.floating):
            raise ValueError(
                f"{name} must return floats [n = {n}, V] "
                f"(got {jnp.result_type(scores_nxV)}{list(jnp.shape(scores_nxV))})"
            )
        check_same(name, carry, new_carry)
        return Scored(scores_nxV.astype(jnp.float32), new_carry, *more)

    return scored


def check_same(name: str, carry: Any, new_carry: Any) -> None:
    """Raises unless the callback `name` returned a carry like the one that it got."""
    had, got = (jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", c) for c in (carry, new_carry))
    if had != got:
        raise ValueError(f"{name} must return a carry like the one it gets, {had} (got {got})")


def raise_if_any(is_nan: jax.Array) -> None:
    """Raises if a search found nothing but NaN. Inside jit nobody can know."""
    if not isinstance(is_nan, Tracer) and np.any(is_nan):
        raise jax.errors.JaxRuntimeError(f"INTERNAL: {NO_ENTRIES}")


def _fits(array: jax.Array, shape: tuple[int | None, ...]) -> bool:
    return array.ndim == len(shape) and all(want in (None, size) for want, size in zip(shape, array.shape, strict=True))


def _text(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
