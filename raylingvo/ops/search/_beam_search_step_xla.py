"""One step of a beam search in pure JAX. What it does: `beam_search_step`; its rules: `_beam_search_attributes`."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from raylingvo.ops.search import _beam_search_merge_xla as merging
from raylingvo.ops.search._beam_search_attributes import EMPTY_SCORE, StepAttributes
from raylingvo.ops.search._beam_search_merge_xla import Candidates
from raylingvo.ops.search._top_k_logits import top_k_by_blocks
from raylingvo.ops.search.beam_search_state import BeamSearchState

# b beams, k hyps per beam, N = b*k slots (slot i is hyp i // b of beam i % b), T steps, S source positions, V tokens; C
# entries of a slot, best first (V if that is less); P = k*C candidates of a beam.

_LOWEST = float(jnp.finfo(jnp.float32).min)


class _Ends(NamedTuple):
    """How each slot ends in this step, if it does."""

    is_done: jax.Array  # bool[N]
    token: jax.Array  # i32[N], its terminal symbol
    local: jax.Array  # f32[N]
    g: jax.Array  # f32[N], raw score with it


@functools.partial(jax.jit, static_argnames="attributes")
def step(
    log_probs: jax.Array,
    atten_probs: jax.Array,
    state: BeamSearchState,
    cur_step: jax.Array,
    is_last_chunk: jax.Array,
    last_steps: jax.Array,
    attributes: StepAttributes,
) -> BeamSearchState:
    """log_probs f32|bf16[N, V], atten_probs [N, S], cur_step i32[], is_last_chunk bool[N], last_steps i32[b]: all of
    them checked."""
    a, k = attributes, attributes.num_hyps_per_beam
    N = len(state.cumulative_scores)
    b = N // k
    is_skipped_b = state.beam_done if a.beam_independence else jnp.zeros(b, bool)
    is_expanded_N = ~jnp.tile(is_skipped_b, k) & ((cur_step > 0) | (jnp.arange(N) < b))
    if a.compat is None:
        is_expanded_N &= ~(state.cumulative_scores <= EMPTY_SCORE)

    entries_NxC, has_none_N = _entries(log_probs, state.cumulative_scores, is_expanded_N, a)
    is_last_step_N = jnp.tile(cur_step == last_steps, k) & a.force_eos_in_last_step
    entries_NxC, is_forced_N = _force(
        entries_NxC, log_probs, state.cumulative_scores, is_expanded_N, is_last_step_N, is_last_chunk, a
    )
    needs_labels = a.merge_paths or (a.eoc_id >= 0 and not a.allow_empty_terminated_hyp)
    labels = merging.labels(state.hyps, state.prev_hyps, cur_step, a.eoc_id, k) if needs_labels else None
    ends = _ends(entries_NxC, log_probs, state.cumulative_scores, is_forced_N, is_last_step_N, is_last_chunk, labels, a)

    ends_it_NxC = entries_NxC.token == a.eos_id
    if a.eoc_id >= 0:
        ends_it_NxC |= is_last_chunk[:, None] & (entries_NxC.token == a.eoc_id)
    continuing_NxC = entries_NxC._replace(is_valid=entries_NxC.is_valid & ~ends_it_NxC)
    candidates_bxP = jax.tree.map(lambda x: x.reshape(k, b, -1).transpose(1, 0, 2).reshape(b, -1), continuing_NxC)
    if not a.merge_paths:
        chosen_bxk = merging.best(candidates_bxP, k)
    else:
        assert labels is not None
        same_bxPxP = merging.same_labels(candidates_bxP, labels, a.eoc_id)
        if a.compat is None:
            chosen_bxk = merging.best(merging.merge(candidates_bxP, same_bxPxP), k)
        else:
            size = a.merged_topk_buffer_size_factor * k
            chosen_bxk = merging.merge_in_buffer(candidates_bxP, same_bxPxP, k, size)
    chosen_N = _to_slots(chosen_bxk, a.compat)
    is_dead_b = jnp.any(has_none_N.reshape(k, b), axis=0)
    return _next_state(state, cur_step, chosen_N, ends, atten_probs, is_skipped_b, is_dead_b, a)


def _entries(log_probs_NxV: jax.Array, cum_N: jax.Array, is_expanded_N: jax.Array, a: StepAttributes):
    """The best C continuations of each slot, and whether there is none for all its scores are NaN."""
    V = log_probs_NxV.shape[1]
    g_NxV = cum_N[:, None] + log_probs_NxV.astype(jnp.float32)
    # NaN below -inf: so the best entry alone tells whether a row is all NaN, without another pass over it.
    ordered_NxV = jnp.where(jnp.isnan(g_NxV), -jnp.inf, jnp.maximum(g_NxV, _LOWEST))
    top_NxC, token_NxC = top_k_by_blocks(ordered_NxV, min(a.num_entries, V))
    is_valid_NxC = top_NxC > _LOWEST
    if a.compat == "lingvo":
        first_N = jnp.argmax(~jnp.isnan(g_NxV), axis=1)
        is_valid_NxC |= (top_NxC == _LOWEST) & (token_NxC == first_N[:, None])
    local_NxC = jnp.take_along_axis(log_probs_NxV, token_NxC, axis=1).astype(jnp.float32)
    slot_NxC = jnp.broadcast_to(jnp.arange(len(cum_N), dtype=jnp.int32)[:, None], token_NxC.shape)
    is_valid_NxC &= is_expanded_N[:, None]
    entries_NxC = Candidates(cum_N[:, None] + local_NxC, token_NxC, slot_NxC, local_NxC, is_valid_NxC)
    # Not top_NxC[:, 0]: XLA for CPUs knows no top_k behind such a slice, and sorts all V (measured: 300 times slower).
    return entries_NxC, is_expanded_N & (jnp.max(top_NxC, axis=1) == -jnp.inf)


def _force(
    entries_NxC: Candidates, log_probs, cum_N, is_expanded_N, is_last_step_N, is_last_chunk_N, a: StepAttributes
):
    """Puts EOS and EOC among the entries where attributes say so; and the slots that must end with EOS."""
    is_forced_N = jnp.zeros(len(cum_N), bool)
    if a.force_eos_in_last_step or a.force_eos_in_top_k:
        eos_N = _symbol(a.eos_id, log_probs, cum_N, is_expanded_N)
        is_forced_N = is_last_step_N & eos_N.is_valid
        if a.force_eos_in_last_step and a.compat == "lingvo":
            is_forced_N &= lax.cond(
                jnp.any(is_last_step_N),
                lambda: _gets_in(log_probs, cum_N, eos_N.g, a),
                lambda: jnp.zeros_like(is_forced_N),
            )
        goes_in_N = eos_N.is_valid if a.force_eos_in_top_k else is_forced_N
        entries_NxC = _put(entries_NxC, eos_N, goes_in_N, -1)
    if a.eoc_id >= 0 and a.force_last_chunk_eoc_in_top_k:
        eoc_N = _symbol(a.eoc_id, log_probs, cum_N, is_expanded_N)
        # Not the last place, where a forced EOS is.
        entries_NxC = _put(entries_NxC, eoc_N, eoc_N.is_valid & is_last_chunk_N, -2)
    return entries_NxC, is_forced_N


def _symbol(token: int, log_probs_NxV, cum_N, is_expanded_N) -> Candidates:
    local_N = log_probs_NxV[:, token].astype(jnp.float32)
    g_N = cum_N + local_N
    slot_N = jnp.arange(len(cum_N), dtype=jnp.int32)
    return Candidates(g_N, jnp.full_like(slot_N, token), slot_N, local_N, is_expanded_N & (g_N > -jnp.inf))


def _put(entries_NxC: Candidates, symbol_N: Candidates, goes_in_N: jax.Array, place: int) -> Candidates:
    """Where it is to go in and is not there: then C tokens are, as it could have had a free place."""
    is_there_N = jnp.any(entries_NxC.is_valid & (entries_NxC.token == symbol_N.token[:, None]), axis=1)
    C = entries_NxC.token.shape[1]
    here_NxC = (jnp.arange(C) == C + place)[None] & (goes_in_N & ~is_there_N)[:, None]
    return jax.tree.map(lambda entry, symbol: jnp.where(here_NxC, symbol[:, None], entry), entries_NxC, symbol_N)


def _gets_in(log_probs_NxV, cum_N, eos_g_N, a: StepAttributes) -> jax.Array:
    """Whether Lingvo's buffer lets EOS in, whatever its score: it is compared with the C-th best so far before its
    privilege is looked at, once 2C tokens have been buffered."""
    C, N = a.num_entries, len(cum_N)
    if a.eos_id < 2 * C:
        return jnp.ones(N, bool)
    place_1xB = jnp.arange(2 * C)[None]

    def add(token, carry):
        g_NxB, count_N, bottom_N = carry
        g_N = cum_N + log_probs_NxV[:, token].astype(jnp.float32)
        is_added_N = (g_N > bottom_N) | ((count_N == 0) & (g_N == -jnp.inf))
        g_NxB = jnp.where(is_added_N[:, None] & (place_1xB == count_N[:, None]), g_N[:, None], g_NxB)
        count_N = count_N + is_added_N
        top_NxC, _ = lax.top_k(g_NxB, C)
        is_full_N = count_N == 2 * C
        g_NxB = jnp.where(is_full_N[:, None], jnp.pad(top_NxC, ((0, 0), (0, C)), constant_values=-jnp.inf), g_NxB)
        return g_NxB, jnp.where(is_full_N, C, count_N), jnp.where(is_full_N, top_NxC[:, -1], bottom_N)

    start = (jnp.full((N, 2 * C), -jnp.inf), jnp.zeros(N, jnp.int32), jnp.full(N, -jnp.inf))
    _, _, bottom_N = lax.fori_loop(0, a.eos_id, add, start)
    return eos_g_N >= bottom_N


def _ends(
    entries_NxC: Candidates, log_probs, cum_N, is_forced_N, is_last_step_N, is_last_chunk_N, labels, a: StepAttributes
) -> _Ends:
    threshold_N = entries_NxC.g[:, 0] - a.valid_eos_max_logit_delta

    def find(token: int):
        """Where a symbol is among the entries (-1: nowhere), its scores, and whether they are good enough."""
        is_it_NxC = entries_NxC.is_valid & (entries_NxC.token == token)
        place_N = jnp.where(jnp.any(is_it_NxC, axis=1), jnp.argmax(is_it_NxC, axis=1), -1)
        local_N = log_probs[:, token].astype(jnp.float32)
        g_N = cum_N + local_N
        return place_N, local_N, g_N, (place_N >= 0) & (g_N > threshold_N) & (local_N > a.local_eos_threshold)

    eos_place_N, local_N, g_N, is_done_N = find(a.eos_id)
    if a.force_eos_in_last_step:
        # A forced EOC may have taken the place of EOS; then Lingvo does not force it.
        is_done_N |= is_forced_N if a.compat is None else is_last_step_N & (eos_place_N >= 0)
    token_N = jnp.full_like(eos_place_N, a.eos_id)
    if a.eoc_id >= 0:
        eoc_place_N, eoc_local_N, eoc_g_N, ends_with_eoc_N = find(a.eoc_id)
        ends_with_eoc_N &= is_last_chunk_N
        if not a.allow_empty_terminated_hyp:
            ends_with_eoc_N &= labels.lens_N > 0
        # Of two that end the same hyp the later entry, which scores lower, stays.
        ends_with_eoc_N &= ~is_done_N | (eoc_place_N > eos_place_N)
        token_N = jnp.where(ends_with_eoc_N, a.eoc_id, token_N)
        local_N = jnp.where(ends_with_eoc_N, eoc_local_N, local_N)
        g_N = jnp.where(ends_with_eoc_N, eoc_g_N, g_N)
        is_done_N |= ends_with_eoc_N
    return _Ends(is_done_N, token_N, local_N, g_N)


def _to_slots(chosen_bxk: Candidates, compat: str | None) -> Candidates:
    """The j-th of a beam in slot j*b + beam; where there is none, an empty hyp."""
    b, k = chosen_bxk.token.shape
    chosen_N = jax.tree.map(lambda x: x.T.reshape(-1), chosen_bxk)
    beam_N = jnp.tile(jnp.arange(b, dtype=jnp.int32), k)
    is_valid_N = chosen_N.is_valid
    return Candidates(
        g=jnp.where(is_valid_N, chosen_N.g, EMPTY_SCORE if compat is None else 0.0),
        token=jnp.where(is_valid_N, chosen_N.token, 0),
        slot=jnp.where(is_valid_N, chosen_N.slot, beam_N if compat is None else 0),
        local=jnp.where(is_valid_N, chosen_N.local, 0.0),
        is_valid=is_valid_N,
    )


def _next_state(
    state: BeamSearchState, cur_step, chosen_N: Candidates, ends: _Ends, atten_probs, is_skipped_b, is_dead_b, a
) -> BeamSearchState:
    k = a.num_hyps_per_beam
    T, N = state.hyps.shape
    is_kept_N = jnp.tile(is_skipped_b, k)

    def with_row(history, row):
        if a.beam_independence:
            old = lax.dynamic_index_in_dim(history, cur_step, keepdims=False)
            row = jnp.where(is_kept_N.reshape((N,) + (1,) * (row.ndim - 1)), old, row)
        return lax.dynamic_update_index_in_dim(history, row.astype(history.dtype), cur_step, 0)

    is_done_N = ends.is_done
    best_ended_b = jnp.max(jnp.where(is_done_N, ends.g, -jnp.inf).reshape(k, -1), axis=0)
    best_b = jnp.maximum(state.best_scores, best_ended_b)
    best_b = jnp.where(is_dead_b, jnp.nan, best_b)
    cum_N = jnp.where(is_kept_N, state.cumulative_scores, chosen_N.g)
    cum_N = jnp.where(jnp.tile(is_dead_b, k), jnp.nan, cum_N)
    done_hyps_TxN = with_row(state.done_hyps, is_done_N)

    beam_done_b = jnp.all((cum_N <= jnp.tile(best_b - a.beam_size, k)).reshape(k, -1), axis=0)
    if a.ensure_full_beam:
        has_been_TxN = done_hyps_TxN & (jnp.arange(T)[:, None] <= cur_step)
        beam_done_b &= jnp.sum(has_been_TxN.reshape(T, k, -1), axis=(0, 1)) >= k
    beam_done_b |= state.beam_done

    atten_NxS = atten_probs.astype(jnp.float32)
    return BeamSearchState(
        best_scores=best_b,
        cumulative_scores=cum_N,
        scores=with_row(state.scores, chosen_N.local),
        hyps=with_row(state.hyps, chosen_N.token),
        prev_hyps=with_row(state.prev_hyps, chosen_N.slot),
        done_hyps=done_hyps_TxN,
        eos_ids=with_row(state.eos_ids, jnp.where(is_done_N, ends.token, 0)),
        eos_scores=with_row(state.eos_scores, jnp.where(is_done_N, ends.local, 0.0)),
        eos_global_scores=with_row(state.eos_global_scores, jnp.where(is_done_N, ends.g, 0.0)),
        atten_probs=with_row(state.atten_probs, atten_NxS[chosen_N.slot]),
        eos_atten_probs=with_row(state.eos_atten_probs, jnp.where(is_done_N[:, None], atten_NxS, 0.0)),
        beam_done=beam_done_b,
        all_done=jnp.all(beam_done_b),
    )
