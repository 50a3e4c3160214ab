"""Outputs and gradients of a layer, compiled as one program, and Lingvo's tolerances for them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def outputs_and_grads(f: Callable[..., Any], args: Any, cotangents: Any) -> tuple[Any, Any, Any]:
    """f(*args) -> (outputs, others). Returns both, and the gradients of sum(outputs * cotangents), one for each arg."""

    @jax.jit
    def run(args: Any, cotangents: Any) -> Any:
        outputs, pullback, others = jax.vjp(f, *args, has_aux=True)
        return outputs, others, pullback(cotangents)

    return run(args, cotangents)


def assert_output(got: Any, expected: np.ndarray, name: str) -> None:
    """Golden outputs: atol 2e-5."""
    np.testing.assert_allclose(got, expected, atol=2e-5, rtol=0, err_msg=name)


def assert_grad(got: Any, expected: np.ndarray, name: str) -> None:
    """Golden gradients: 3e-5 * max(1, |g|max)."""
    limit = 3e-5 * max(1, np.abs(expected).max())
    np.testing.assert_allclose(np.reshape(got, expected.shape), expected, atol=limit, rtol=0, err_msg=name)
