"""Stochastic beam search: sampling hyps without replacement (Kool et al. 2019, arXiv 1903.06059; Lingvo:
core/base_decoder.py)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from raylingvo.ops.search._beam_search_attributes import EMPTY_SCORE
from raylingvo.ops.search._search_arguments import floats, integers

# b beams, N = b*k slots (slot i is hyp i // b of beam i % b), V vocabulary, C candidates of each slot.


class StochasticState(NamedTuple):
    """What a slot's hyp brings to its next step. Part of a search's cache: it follows the hyps.

    cumulative: f32[N], the log-probability of the hyp as the slot's parent had it.
    perturbed: f32[N], its perturbed log-probability G, likewise.
    candidates, candidate_log_probs, candidate_perturbed: i32, f32, f32 [N, C], what could have continued it, of which
      the search has chosen one.
    step: i32[], how many steps there have been.
    """

    cumulative: jax.Array
    perturbed: jax.Array
    candidates: jax.Array
    candidate_log_probs: jax.Array
    candidate_perturbed: jax.Array
    step: jax.Array

    @classmethod
    def create(cls, num_slots: int, top_k: int = 8) -> StochasticState:
        """Before the first step. num_slots: N. top_k: C, how many tokens of each step can be drawn, at most V."""
        if num_slots < 1 or top_k < 1:
            raise ValueError(f"num_slots and top_k must be > 0 (got {num_slots} and {top_k})")
        return cls(
            cumulative=jnp.zeros(num_slots, jnp.float32),
            # G of the empty hyp may be any number: 0 keeps all others below it (footnote 2 of the paper).
            perturbed=jnp.zeros(num_slots, jnp.float32),
            candidates=jnp.full((num_slots, top_k), -1, jnp.int32),
            candidate_log_probs=jnp.zeros((num_slots, top_k), jnp.float32),
            candidate_perturbed=jnp.zeros((num_slots, top_k), jnp.float32),
            step=jnp.zeros((), jnp.int32),
        )


def stochastic_scores(
    log_probs: Any, ids: Any, state: StochasticState, rng: jax.Array, *, top_p: Any = 1.0
) -> tuple[jax.Array, StochasticState]:
    """Scores that make a beam search draw its hyps without replacement, each in proportion to its probability.

    The function for a `beam_search`'s step_fn: the cumulative scores of the search are then the perturbed ones, G. For
    exact samples top_k must be V, top_p 1, and valid_eos_max_logit_delta, beam_size and length_normalization must not
    interfere.

    Args:
      log_probs: f32[N, V], of the next token of each slot.
      ids: i32[N], the newest token of each slot: in the first step not read.
      state: `StochasticState.create` in the first step, then what this function returned, reordered with the cache.
      rng: a key (jax.random.key), or keys [b], one per beam: then what a beam draws does not depend on the others.
      top_p: of the top_k tokens, those are kept before which less than this probability has been collected, always the
        first. In (0, 1], or f32[b].

    Returns:
      f32[N, V], G of the hyp with each token less G of the hyp, -1e30 for tokens that are not candidates (Lingvo:
      -1e9); and the state for the next step.

    Raises:
      ValueError: a shape or a dtype is wrong; the message names it.
    """
    log_prob_NxV = floats("log_probs", log_probs, (len(state.cumulative), None))
    N, V = log_prob_NxV.shape
    ids_N = integers("ids", ids, (N,))
    C = state.candidates.shape[1]
    if C > V:
        raise ValueError(f"top_k of StochasticState must be at most V = {V} (got {C})")

    # What the search has chosen for each slot. In the first step nothing matches.
    is_chosen_NxC = state.candidates == ids_N[:, None]
    cumulative_N = state.cumulative + jnp.sum(jnp.where(is_chosen_NxC, state.candidate_log_probs, 0.0), axis=1)
    chosen_G_N = jnp.sum(jnp.where(is_chosen_NxC, state.candidate_perturbed, 0.0), axis=1)
    G_N = jnp.where(is_chosen_NxC.any(axis=1), chosen_G_N, state.perturbed)

    best_NxC, token_NxC = lax.top_k(log_prob_NxV, C)
    token_NxC = token_NxC.astype(jnp.int32)
    kept_NxC = _keep_top_p(best_NxC, _per_slot("top_p", top_p, N))
    rng = jax.vmap(jax.random.fold_in, (0, None))(rng, state.step) if rng.ndim else jax.random.fold_in(rng, state.step)
    new_G_NxC = gumbel_with_max(cumulative_N[:, None] + kept_NxC, G_N, rng)
    local_NxC = jnp.where(kept_NxC > EMPTY_SCORE, new_G_NxC - G_N[:, None], EMPTY_SCORE)
    scores_NxV = jnp.full((N, V), EMPTY_SCORE).at[jnp.arange(N)[:, None], token_NxC].set(local_NxC)
    return scores_NxV, StochasticState(
        cumulative=cumulative_N,
        perturbed=G_N,
        candidates=token_NxC,
        candidate_log_probs=best_NxC,
        candidate_perturbed=new_G_NxC,
        step=state.step + 1,
    )


def gumbel_with_max(log_probs: jax.Array, maxima: jax.Array, rng: jax.Array) -> jax.Array:
    """Gumbel variables with locations log_probs f32[N, C], given that the largest of each row is maxima f32[N].

    Equation 12 of appendix B.3 of the paper, which neither overflows nor cancels. rng: a key, or keys [b] for beams
    whose slots are hyp-major: N is a multiple of b.
    """
    N, C = log_probs.shape
    if rng.ndim:
        b = len(rng)
        if N % b:
            raise ValueError(f"rng must be one key, or as many as there are beams (got {b} for {N} slots)")
        noise_bxkxC = jax.vmap(lambda key: jax.random.gumbel(key, (N // b, C)))(rng)
        noise_NxC = noise_bxkxC.transpose(1, 0, 2).reshape(N, C)
    else:
        noise_NxC = jax.random.gumbel(rng, (N, C))
    g_NxC = log_probs + noise_NxC
    max_Nx1, largest_Nx1 = maxima[:, None], jnp.max(g_NxC, axis=1, keepdims=True)
    # 1 - exp(g - largest) is 0 for the largest: its v is -inf, and it becomes the maximum itself.
    v_NxC = max_Nx1 - g_NxC + jnp.log1p(jnp.maximum(-jnp.exp(g_NxC - largest_Nx1), -1.0))
    return max_Nx1 - jax.nn.relu(v_NxC) - jnp.log1p(jnp.exp(-jnp.abs(v_NxC)))


def _keep_top_p(sorted_NxC: jax.Array, top_p_N: jax.Array) -> jax.Array:
    prob_NxC = jnp.exp(sorted_NxC)
    before_NxC = jnp.pad(jnp.cumsum(prob_NxC, axis=1)[:, :-1], ((0, 0), (1, 0)))
    # The sum of all may be rounded to 1 before the last has been added.
    is_kept_NxC = (before_NxC < top_p_N[:, None]) | (top_p_N[:, None] >= 1.0)
    return jnp.where(is_kept_NxC.at[:, 0].set(True), sorted_NxC, EMPTY_SCORE)


def _per_slot(name: str, value: Any, N: int) -> jax.Array:
    """f32[N] from a number or one for each beam."""
    array = jnp.asarray(value, jnp.float32)
    if array.ndim > 1 or (array.ndim and (not len(array) or N % len(array))):
        raise ValueError(f"{name} must be a number or one per beam, for {N} slots (got {list(array.shape)})")
    return jnp.tile(jnp.atleast_1d(array), N // array.size)
