"""Roots of inverse matrices, by products alone: fast on accelerators, where eigenvalues are slow."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from raylingvo.ops.product import einsum

# N matrices, each DxD.

# An iteration multiplies what is far below 1 by more than 2: enough for eigenvalues 1e-9 of the largest.
_MAX_ITERATIONS = 50


def inverse_root(matrices_NxDxD: jax.Array, p: int) -> tuple[jax.Array, jax.Array]:
    """A^(-1/p) of each symmetric positive definite matrix A, by the coupled Newton iteration.

    With T = ((p + 1) I - M) / p, (X, M) becomes (X T, T^p M) until M is I; M = X^p A all the time. Float32 resolves
    eigenvalues down to about 1e-7 of the largest. Source: Guo and Higham, A Schur-Newton method for the matrix p-th
    root and its inverse (2006); Lingvo: core/matrix_functions.py.

    Args:
      matrices_NxDxD: f32.
      p: at least 1.

    Returns:
      The roots, f32[N, D, D], and for each the largest |M - I| of its entries, f32[N]. Where that is not small, the
      root is none: the matrix was not positive definite.
    """
    identity_NxDxD = jnp.broadcast_to(jnp.eye(matrices_NxDxD.shape[-1], dtype=jnp.float32), matrices_NxDxD.shape)

    def errors_of(m_NxDxD: jax.Array) -> jax.Array:
        return jnp.abs(m_NxDxD - identity_NxDxD).max(axis=(1, 2))

    def goes_on(state: tuple[jax.Array, ...]) -> jax.Array:
        iteration, _, _, _, active_N = state
        return (iteration < _MAX_ITERATIONS) & active_N.any()

    def iterate(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        iteration, x_NxDxD, m_NxDxD, error_N, active_N = state
        t_NxDxD = ((p + 1) * identity_NxDxD - m_NxDxD) / p
        next_m_NxDxD = _product(_power(t_NxDxD, p), m_NxDxD)
        next_error_N = errors_of(next_m_NxDxD)
        # While the smallest eigenvalues are far from 1 the error is about 1, and says nothing; later it falls, each
        # time to its square, until rounding stops it. NaN is neither.
        better_N = active_N & ((next_error_N < error_N) | (next_error_N > 0.5))
        keep_Nx1x1 = better_N[:, None, None]
        return (
            iteration + 1,
            jnp.where(keep_Nx1x1, _product(x_NxDxD, t_NxDxD), x_NxDxD),
            jnp.where(keep_Nx1x1, next_m_NxDxD, m_NxDxD),
            jnp.where(better_N, next_error_N, error_N),
            better_N & (next_error_N > 1e-6),
        )

    # Lower precision, an accelerator's default, would lose the small eigenvalues.
    with jax.default_matmul_precision("highest"):
        # It converges if all eigenvalues of M are in (0, p + 1) at first; no eigenvalue is above this norm.
        norm_Nx1x1 = jnp.sqrt(jnp.square(matrices_NxDxD).sum(axis=(1, 2), keepdims=True))
        scale_Nx1x1 = (p + 1) / (2 * norm_Nx1x1)
        m_NxDxD = scale_Nx1x1 * matrices_NxDxD
        x_NxDxD = scale_Nx1x1 ** (1 / p) * identity_NxDxD
        error_N = errors_of(m_NxDxD)
        start = (jnp.zeros((), jnp.int32), x_NxDxD, m_NxDxD, error_N, jnp.ones(error_N.shape, bool))
        _, roots_NxDxD, _, error_N, _ = jax.lax.while_loop(goes_on, iterate, start)
    return roots_NxDxD, error_N


def _product(x_NxDxD: jax.Array, y_NxDxD: jax.Array) -> jax.Array:
    return einsum("nij,njk->nik", x_NxDxD, y_NxDxD)


def _power(x_NxDxD: jax.Array, p: int) -> jax.Array:
    """x^p, in about log2(p) products."""
    if p == 1:
        return x_NxDxD
    half_NxDxD = _power(x_NxDxD, p // 2)
    square_NxDxD = _product(half_NxDxD, half_NxDxD)
    return _product(square_NxDxD, x_NxDxD) if p % 2 else square_NxDxD
