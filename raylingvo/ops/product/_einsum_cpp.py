"""`einsum` in C++ (csrc/einsum.cc): a JAX primitive, so that it has gradients of any order, in both modes, and vmap."""

from __future__ import annotations

import functools
import string
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from raylingvo.ops._native import call
from raylingvo.ops.product._einsum_plan import Equation, make_plan, sizes_of

# Floats in the widest registers that may be used, of those that the machine has. Tests lower it.
MAX_WIDTH = 16

PRIMITIVE = Primitive("raylingvo_einsum")


def einsum(equation: Equation, x: jax.Array, y: jax.Array) -> jax.Array:
    """x and y are f32, and there is a plan for their shapes."""
    return PRIMITIVE.bind(x, y, equation=equation)


def lax_einsum(equation: Equation, x: jax.Array, y: jax.Array, **options: Any) -> jax.Array:
    """The same by XLA."""
    return jnp.einsum(f"{equation.x},{equation.y}->{equation.result}", x, y, **options)


@functools.partial(jax.jit, static_argnames="equation")
def _compiled(x: jax.Array, y: jax.Array, *, equation: Equation) -> jax.Array:
    return PRIMITIVE.bind(x, y, equation=equation)


def _abstract(x: Any, y: Any, *, equation: Equation) -> Any:
    sizes = sizes_of(equation, x.shape, y.shape)
    return x.update(shape=tuple(sizes[letter] for letter in equation.result), weak_type=False)


def _for_cpu(x: jax.Array, y: jax.Array, *, equation: Equation) -> jax.Array:
    plan = make_plan(equation, x.shape, y.shape)
    if plan is None:  # a gradient, or vmap, of what had a plan
        return lax_einsum(equation, x, y)
    m, n, k = plan.m, plan.n, plan.k
    return call(
        "RaylingvoEinsum",
        jax.eval_shape(functools.partial(lax_einsum, equation), x, y),
        *((y, x) if plan.swap else (x, y)),
        matrices=np.array([m.size, n.size, k.size, m.x, k.x, k.y, n.y, m.result], np.int64),
        batch=np.array(plan.batch, np.int64).reshape(-1),
        max_width=np.int64(MAX_WIDTH),
    )


def _for_others(x: jax.Array, y: jax.Array, *, equation: Equation) -> jax.Array:
    return lax_einsum(equation, x, y)


def _gradient_x(grad: jax.Array, x: Any, y: jax.Array, *, equation: Equation) -> jax.Array:
    return _linear(Equation(equation.result, equation.y, equation.x), grad, y, x.aval.shape)


def _gradient_y(grad: jax.Array, x: jax.Array, y: Any, *, equation: Equation) -> jax.Array:
    return _linear(Equation(x=equation.x, y=equation.result, result=equation.y), x, grad, y.aval.shape)


def _linear(equation: Equation, x: jax.Array, y: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    # An axis of size 1 may be in one array alone.
    lacking = [i for i, letter in enumerate(equation.result) if letter not in equation.x + equation.y]
    result = "".join(letter for i, letter in enumerate(equation.result) if i not in lacking)
    return einsum(equation._replace(result=result), x, y).reshape(shape)


def _batch(args: Any, axes: Any, *, equation: Equation) -> Any:
    letter = next(letter for letter in string.ascii_letters if letter not in "".join(equation))
    operands, letters = [], []
    for array, axis, part in zip(args, axes, equation[:2], strict=True):
        mapped = axis is not None
        operands.append(jnp.moveaxis(array, axis, 0) if mapped else array)
        letters.append(letter + part if mapped else part)
    x, y = operands
    return einsum(Equation(letters[0], letters[1], letter + equation.result), x, y), 0


PRIMITIVE.def_impl(_compiled)
PRIMITIVE.def_abstract_eval(_abstract)
mlir.register_lowering(PRIMITIVE, mlir.lower_fun(_for_others, multiple_results=False))
mlir.register_lowering(PRIMITIVE, mlir.lower_fun(_for_cpu, multiple_results=False), platform="cpu")
ad.defbilinear(PRIMITIVE, _gradient_x, _gradient_y)
batching.primitive_batchers[PRIMITIVE] = _batch
