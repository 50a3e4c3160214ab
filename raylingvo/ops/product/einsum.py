"""Sums of products over named axes, of two arrays: the products of layers."""

from __future__ import annotations

import string
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from raylingvo.ops._native import Implementation, say_once, why_unavailable
from raylingvo.ops.product import _einsum_cpp
from raylingvo.ops.product._einsum_plan import Equation, Plan, make_plan, sizes_of

# Below so many multiplications XLA computes, within what surrounds them: a call of ours takes 7 us where a core of the
# same machine does so many in 0.6 us.
_FEW = 1 << 15


def einsum(
    equation: str,
    x: Any,
    y: Any,
    *,
    preferred_element_type: DTypeLike | None = None,
    implementation: Implementation = "auto",
) -> jax.Array:
    """`jnp.einsum` of two arrays, on CPUs by a product of our own where that is faster.

    The C++ one reads both arrays where they lie, whatever the order of their axes. Each sum is computed in one order,
    whatever the number of threads: results repeat to the bit. They differ from XLA's by rounding. A gradient, or what
    vmap makes of it, is XLA's where the C++ one cannot do it.

    Args:
      equation: as "btd,df->btf": a letter for each axis, each letter once in an array. x and the result may begin with
        "...", any axes of x.
      x, y: two float arrays. The C++ op is for float32; others are left to XLA.
      preferred_element_type: the dtype of sums and result; default: that of x and y together.
      implementation: "xla": jnp.einsum, on any device. "cpp": the C++ op, on CPUs. "auto": "cpp" for large float32
        products where a CPU is JAX's only device (XLA cannot share the C++ op among several).

    Returns:
      The axes behind "->", of the dtype of x and y or `preferred_element_type`.

    Raises:
      ValueError: the equation is malformed or does not fit the shapes; "cpp" for what it cannot do (another dtype; an
        axis summed within one array; a result whose last axis is of both; summed axes in different orders).
      RuntimeError: implementation="cpp" where there is none.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    parts = _parse(equation, x.ndim)
    sizes_of(parts, x.shape, y.shape)
    if implementation not in ("auto", "xla", "cpp"):
        raise ValueError(f"implementation must be 'auto', 'xla' or 'cpp' (got {implementation!r})")
    if implementation != "xla":
        dtypes = [x.dtype, y.dtype, jnp.dtype(preferred_element_type or jnp.float32)]
        float32 = all(dtype == jnp.float32 for dtype in dtypes)
        plan = make_plan(parts, x.shape, y.shape) if float32 else None
        if implementation == "cpp":
            if not float32:
                raise ValueError(f"implementation='cpp' is for float32 (got {', '.join(map(str, dtypes))})")
            if plan is None:
                raise ValueError(f"implementation='cpp' cannot do {equation!r} for {x.shape} and {y.shape}")
            if why := why_unavailable():
                raise RuntimeError(f"implementation='cpp': {why}")
            return _einsum_cpp.einsum(parts, x, y)
        if plan is not None and _worthwhile(plan):
            return _einsum_cpp.einsum(parts, x, y)
    return _einsum_cpp.lax_einsum(parts, x, y, preferred_element_type=preferred_element_type)


def _worthwhile(plan: Plan) -> bool:
    if plan.multiplications < _FEW or jax.default_backend() != "cpu" or jax.device_count() > 1:
        return False
    if why := why_unavailable():
        say_once(why)
        return False
    return True


def _parse(equation: str, x_ndim: int) -> Equation:
    """The equation without "..."."""
    inputs, arrow, result = equation.partition("->")
    x, comma, y = inputs.partition(",")
    if not arrow or not comma or "..." in y or x.startswith("...") != result.startswith("..."):
        raise ValueError(f"equation must be like 'bd,df->bf' or '...d,df->...f' (got {equation!r})")
    unused = [letter for letter in string.ascii_uppercase if letter not in equation]
    leading = "".join(unused[: max(0, x_ndim - (len(x) - len("...")))])
    x, result = (part.replace("...", leading, 1) if part.startswith("...") else part for part in (x, result))
    for part in (x, y, result):
        if len(set(part)) != len(part) or not all(letter in string.ascii_letters for letter in part):
            raise ValueError(f"equation must name each axis of an array by a letter of its own (got {equation!r})")
    if not set(result) <= set(x + y):
        raise ValueError(f"equation's result must have axes of its arrays (got {equation!r})")
    return Equation(x, y, result)
