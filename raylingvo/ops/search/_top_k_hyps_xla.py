"""The n-best of a beam search in pure JAX. What it does: `top_k_hyps`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from raylingvo.ops.search._beam_search_attributes import Compat, TopKAttributes, TopKHyps
from raylingvo.ops.search._coverage import log_coverage
from raylingvo.ops.search.beam_search_state import BeamSearchState

# b beams, n hyps of each in the state, N = b*n slots (slot i is hyp i // b of beam i % b), k hyps in the result,
# T steps, S source positions.


def ranked(scores: jax.Array) -> jax.Array:
    """What lax.top_k ranks hyps of such scores by: -0.0 equals 0.0, and NaN is below all others but -inf."""
    lowest = jnp.finfo(jnp.float32).min
    return jnp.where(jnp.isnan(scores), lowest, jnp.maximum(jnp.where(scores == 0, 0.0, scores), lowest))


def top_k(state: BeamSearchState, src_lengths: jax.Array, attributes: TopKAttributes) -> TopKHyps:
    """src_lengths: i32[b]. All arguments are checked."""
    a = attributes
    # Traced, so that a sweep over them compiles once.
    weights = (a.length_normalization, a.coverage_penalty, a.target_seq_length_ratio)
    return _top_k(state, src_lengths, *map(jnp.float32, weights), a.k, a.coverage_penalty > 0, a.compat)


@functools.partial(jax.jit, static_argnums=(5, 6, 7))
def _top_k(state, src_length_b, alpha, coverage_penalty, ratio, k: int, has_coverage: bool, compat: Compat) -> TopKHyps:
    T, N = state.hyps.shape
    b = len(src_length_b)
    n = N // b
    raw_TxN = state.eos_global_scores
    len_T = jnp.arange(1, T + 1, dtype=jnp.float32)
    score_TxN = raw_TxN / ((len_T + 5.0) / 5.0)[:, None] ** alpha
    if has_coverage:
        score_TxN += ratio * coverage_penalty * _log_coverage(state, jnp.tile(src_length_b, n), ratio)

    # Row by row, so that of equal scores the shorter hyp comes first, then that of the lower slot. What has not ended
    # lies below any score.
    order_TxN = jnp.where(state.done_hyps, ranked(score_TxN), -jnp.inf)
    order_bxTn = order_TxN.reshape(T, n, b).transpose(2, 0, 1).reshape(b, -1)
    order_bxTn = jnp.pad(order_bxTn, ((0, 0), (0, max(0, k - T * n))), constant_values=-jnp.inf)
    best_bxk, place_bxk = lax.top_k(order_bxTn, k)
    is_hyp_bxk = best_bxk > -jnp.inf
    row_bxk = jnp.where(is_hyp_bxk, place_bxk // n, 0)
    slot_bxk = jnp.where(is_hyp_bxk, place_bxk % n * b + jnp.arange(b, dtype=jnp.int32)[:, None], 0)

    def walk_back(slot_bxk, row):
        """The token of each hyp at a row, from its end on; and where it was before."""
        token_N, parent_N, r = row
        is_inside_bxk = r < row_bxk
        token_bxk = jnp.where(is_inside_bxk, token_N[slot_bxk], 0)
        return jnp.where(is_inside_bxk, parent_N[slot_bxk], slot_bxk), token_bxk

    rows = (state.hyps, state.prev_hyps, jnp.arange(T))
    _, ids_Txbxk = lax.scan(walk_back, slot_bxk, rows, reverse=True)
    is_end_bxkxT = is_hyp_bxk[..., None] & (jnp.arange(T)[None, None] == row_bxk[..., None])
    ids_bxkxT = jnp.where(is_end_bxkxT, state.eos_ids[row_bxk, slot_bxk][..., None], ids_Txbxk.transpose(1, 2, 0))
    missing = -jnp.inf if compat is None else 0.0
    return TopKHyps(
        ids=ids_bxkxT,
        lens=jnp.where(is_hyp_bxk, row_bxk + 1, 0).astype(jnp.int32),
        scores=jnp.where(is_hyp_bxk, score_TxN[row_bxk, slot_bxk], missing),
    )


def _log_coverage(state: BeamSearchState, src_length_N: jax.Array, ratio: jax.Array) -> jax.Array:
    """f32[T, N], that of the hyp that ends in each slot."""
    _, N, S = state.atten_probs.shape

    def add_row(covered_NxS, row):
        """covered_NxS: the attention that led to the hyps as they were before this row."""
        atten_NxS, eos_atten_NxS, parent_N = row
        return covered_NxS[parent_N] + atten_NxS, log_coverage(covered_NxS + eos_atten_NxS, src_length_N, ratio)

    rows = (state.atten_probs, state.eos_atten_probs, state.prev_hyps)
    _, log_TxN = lax.scan(add_row, jnp.zeros((N, S), jnp.float32), rows)
    return log_TxN
