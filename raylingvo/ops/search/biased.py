"""Decoding that is biased towards given tokens, or forced to them (Lingvo: core/base_decoder.py)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from raylingvo.ops.search._beam_search_attributes import EMPTY_SCORE, Compat, check_compat
from raylingvo.ops.search._search_arguments import floats, integers

# b beams, N = b*k slots (slot i is hyp i // b of beam i % b), L positions of the targets, V vocabulary.


class BiasState(NamedTuple):
    """Part of a search's cache: it follows the hyps.

    consistent: bool[N], whether the hyp has followed its targets so far. step: i32[], how many steps there have been.
    """

    consistent: jax.Array
    step: jax.Array

    @classmethod
    def create(cls, num_slots: int) -> BiasState:
        """Before the first step. num_slots: N."""
        return cls(consistent=jnp.ones(num_slots, bool), step=jnp.zeros((), jnp.int32))


def biased_scores(
    log_probs: Any,
    ids: Any,
    state: BiasState,
    targets: Any,
    weights: Any,
    *,
    only_if_consistent: bool = True,
    compat: Compat = None,
) -> tuple[jax.Array, BiasState]:
    """Log-probabilities that lean towards the targets of each beam: `bias_log_probs` for a search's step_fn.

    With weights 1 for the first tokens of a beam and 0 behind them, all its hyps start with exactly those tokens.

    Args:
      log_probs: f32[N, V], of the next token of each slot.
      ids: i32[N], the newest token of each slot; in the first step not read.
      state: `BiasState.create` in the first step, then what this function returned, reordered with the cache.
      targets: i32[b, L]. weights: f32[b, L] in [0, 1], 0 where a target is padding. Behind position L there is no bias.
      only_if_consistent: a hyp that has left its targets is no longer biased.
      compat: see `bias_log_probs`.

    Returns:
      f32[N, V], and the state for the next step.

    Raises:
      ValueError: a shape or a dtype is wrong; the message names it.
    """
    log_prob_NxV = floats("log_probs", log_probs, (len(state.consistent), None))
    N = len(log_prob_NxV)
    ids_N = integers("ids", ids, (N,))
    target_bxL = integers("targets", targets, (None, None))
    weight_bxL = floats("weights", weights, target_bxL.shape)
    b, L = target_bxL.shape
    if not b or N % b:
        raise ValueError(f"targets must have one row per beam, for {N} slots (got {b} rows)")

    def at(step: jax.Array, array_bxL: jax.Array) -> jax.Array:
        """[N], 0 where there is none."""
        padded_bxM = jnp.pad(array_bxL, ((0, 0), (1, 1)))
        return jnp.tile(padded_bxM[:, jnp.clip(step + 1, 0, L + 1)], N // b)

    t = state.step
    is_outside = (t == 0) | (t > L)
    consistent_N = state.consistent & (is_outside | (at(t - 1, target_bxL) == ids_N))
    weight_N = at(t, weight_bxL)
    if only_if_consistent:
        weight_N = jnp.where(consistent_N, weight_N, 0.0)
    biased_NxV = bias_log_probs(log_prob_NxV, at(t, target_bxL), weight_N, compat=compat)
    return biased_NxV, BiasState(consistent=consistent_N, step=t + 1)


def bias_log_probs(log_probs: Any, targets: Any, weights: Any, *, compat: Compat = None) -> jax.Array:
    """log((1 - w) * exp(log_probs) + w * onehot(target)), f32[N, V], of each row.

    w = 1 forces the target: it gets 0 and all others -1e30. w = 0 leaves the row as it is.

    Args:
      log_probs: f32[N, V]. targets: i32[N], in [0, V). weights: f32[N], w, in [0, 1].
      compat: "lingvo": probabilities below 1e-12 become 1e-12, those of a row without bias too. So a forced token
        can be left at a cost of 27.6.

    Raises:
      ValueError: a shape or a dtype is wrong; the message names it.
    """
    check_compat(compat)
    log_prob_NxV = floats("log_probs", log_probs, (None, None))
    N, V = log_prob_NxV.shape
    target_N = integers("targets", targets, (N,))
    w_Nx1 = floats("weights", weights, (N,))[:, None]
    is_target_NxV = jnp.arange(V)[None] == target_N[:, None]
    # Summed as logarithms: a probability too small for a float32 keeps its place among the others.
    others_NxV = log_prob_NxV + jnp.log1p(-w_Nx1)
    biased_NxV = jnp.where(is_target_NxV, jnp.logaddexp(others_NxV, jnp.log(w_Nx1)), others_NxV)
    if compat == "lingvo":
        return jnp.maximum(biased_NxV, jnp.log(jnp.float32(1e-12)))
    return jnp.where(w_Nx1 > 0.0, jnp.maximum(biased_NxV, EMPTY_SCORE), log_prob_NxV)
