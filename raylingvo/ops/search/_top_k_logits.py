"""The few tokens of each row of logits that can matter to a beam search, without a log-softmax of the whole row.

Normalised or not, a row's tokens rank alike: the best are found among the logits as they are, in their own dtype, and
only those become log-probabilities.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from raylingvo.ops import _native
from raylingvo.ops._native import Implementation

# N rows, V vocabulary; C best tokens of each; M = C + 1 of which something is kept; G blocks of _BLOCK tokens.

_BLOCK = 128
_MIN_BLOCKED = 2048  # below, one lax.top_k takes as long (f32[64, 2048] on a CPU)

EOS = 0  # the place of EOS among the M


class ShortList(NamedTuple):
    """log_probs: f32[N, M], that of EOS first, then those of the C best tokens by token; NaN where EOS is again.

    tokens: i32[N, M], the tokens that they are of.
    """

    log_probs: jax.Array
    tokens: jax.Array


def short_list(logits: jax.Array, eos_id: int, num_tokens: int, implementation: Implementation = "auto") -> ShortList:
    """The log-probabilities of EOS and of the C = num_tokens best tokens of each row of logits [N, V].

    In C++, for float32, a row is read twice and nothing of its size is written.
    """
    if logits.dtype != jnp.float32:
        implementation = "xla"
    settings = {"eos_id": eos_id, "num_tokens": min(num_tokens, logits.shape[1])}
    return ShortList(
        *_native.dispatch(implementation, xla=_short_list_xla, cpp=_short_list_cpp, args=(logits,), **settings)
    )


def _short_list_cpp(logits: jax.Array, *, eos_id: int, num_tokens: int, max_width: int = 16) -> ShortList:
    """max_width: floats of a register at most, for tests."""
    shape = len(logits), num_tokens + 1
    results = (jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape, jnp.int32))
    return ShortList(
        *_native.call("RaylingvoShortList", results, logits, eos_id=np.int64(eos_id), max_width=np.int64(max_width))
    )


def _short_list_xla(logits: jax.Array, *, eos_id: int, num_tokens: int) -> ShortList:
    N = len(logits)
    log_sum_N = _log_sum(logits.astype(jnp.float32))
    best_NxC, token_NxC = top_k_by_blocks(logits, num_tokens)
    # By token: of equal scores the lower token comes first, as it would in the whole row.
    token_NxC, best_NxC = lax.sort((token_NxC, best_NxC), num_keys=1)
    best_NxC = jnp.where(token_NxC == eos_id, jnp.nan, best_NxC)
    logits_NxM = jnp.concatenate([logits[:, eos_id, None].astype(jnp.float32), best_NxC], axis=1)
    tokens_NxM = jnp.concatenate([jnp.full((N, 1), eos_id, jnp.int32), token_NxC], axis=1)
    return ShortList(logits_NxM - log_sum_N[:, None], tokens_NxM)


def log_softmax(logits: jax.Array) -> jax.Array:
    """f32[N, V]. A NaN stays one and says nothing of the others: it counts as -inf in the sum."""
    logits = logits.astype(jnp.float32)
    return logits - _log_sum(logits)[:, None]


def _log_sum(logits: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(jnp.where(jnp.isnan(logits), -jnp.inf, logits), axis=1)


def top_k_by_blocks(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """lax.top_k of the rows of x [N, V]: f32[N, k] values and i32[N, k] places, of equal ones the lower place first.
    Unlike there, NaN is -inf, and -0.0 equals 0.0.

    The k best of a row lie in the k blocks of the highest maxima (of equal ones the lower), so one pass over x for the
    maxima is all that is done to all of it. On CPUs lax.top_k takes 6 times as long for f32[64, 32000] and, as it sorts
    whole rows of bfloat16, 800 times for those.
    """
    N, V = x.shape
    min_blocked = max(_MIN_BLOCKED, k * _BLOCK)
    if min_blocked > V:
        best_Nxk, place_Nxk = lax.top_k(_comparable(x), k)
        return best_Nxk, place_Nxk.astype(jnp.int32)
    x_NxGxB = jnp.pad(x, ((0, 0), (0, -V % _BLOCK)), constant_values=-jnp.inf).reshape(N, -1, _BLOCK)
    max_NxG = jnp.max(jnp.where(jnp.isnan(x_NxGxB), -jnp.inf, x_NxGxB), axis=2)
    _, block_Nxk = lax.top_k(_comparable(max_NxG), k)
    block_Nxk = jnp.sort(block_Nxk, axis=1)
    chosen_NxkB = jnp.take_along_axis(x_NxGxB, block_Nxk[..., None], axis=1).reshape(N, -1)
    best_Nxk, place_Nxk = lax.top_k(_comparable(chosen_NxkB), k)
    block_Nxk = jnp.take_along_axis(block_Nxk, place_Nxk // _BLOCK, axis=1)
    return best_Nxk, (block_Nxk * _BLOCK + place_Nxk % _BLOCK).astype(jnp.int32)


def _comparable(x: jax.Array) -> jax.Array:
    """x in float32, for lax.top_k, to which NaN is the greatest and -0.0 is less than 0.0."""
    x = x.astype(jnp.float32)
    return jnp.where(jnp.isnan(x), -jnp.inf, jnp.where(x == 0, 0.0, x))
