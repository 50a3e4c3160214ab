"""Ops where there are several devices: pure JAX, which XLA can split over them."""

import jax
import jax.numpy as jnp
import pytest

from raylingvo.ops import _native


def who(implementation: _native.Implementation, x: jax.Array) -> jax.Array:
    return _native.dispatch(implementation, xla=lambda x: x + 1, cpp=lambda x: x + 2, args=(x,)) - x


def test_auto_is_xla() -> None:
    x = jnp.float32(1)
    assert who("auto", x) == 1
    assert jax.jit(lambda x: who("auto", x))(x) == 1


@pytest.mark.skipif(bool(_native.why_unavailable()), reason=_native.why_unavailable() or "-")
def test_cpp_is_cpp_also_here() -> None:
    assert who("cpp", jnp.float32(1)) == 2
