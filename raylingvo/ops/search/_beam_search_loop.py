"""The loop of `beam_search`: everything between the calls of the step, which holds the rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from raylingvo.ops._native import Implementation
from raylingvo.ops.search import cache as caching
from raylingvo.ops.search._beam_search_attributes import EMPTY_SCORE, StepAttributes, TopKAttributes
from raylingvo.ops.search._coverage import log_coverage
from raylingvo.ops.search._top_k_logits import EOS, log_softmax, short_list
from raylingvo.ops.search.beam_search_state import BeamSearchState
from raylingvo.ops.search.beam_search_step import beam_search_step

# b beams, k hyps per beam, N = b*k slots (slot i is hyp i // b of beam i % b), T steps, S source positions, V
# vocabulary; M tokens of a short list.


class Scored(NamedTuple):
    """What a decoder's step says: `scores` [N, V], attention f32[N, S] (S = 0: none), the cache, bool[N]."""

    scores: jax.Array
    atten_NxS: jax.Array
    cache: Any
    is_last_chunk_N: jax.Array | None


class Carry(NamedTuple):
    """What the loop keeps. The state keeps no attention: of all that, a search needs the sum over steps."""

    step: jax.Array  # i32[], how many there have been
    ids_N: jax.Array  # the newest token of each hyp
    cache: Any
    state: BeamSearchState
    covered_NxS: jax.Array  # the attention of all steps that led to the hyp in each slot; S = 0 if not asked for
    penalty_TxN: jax.Array  # what coverage adds to the score of the hyp that ended in row t; T = 0 if not asked for
    atten_TxNxS: jax.Array  # of slot i as it was before step t, like done_hyps; S = 0 if not asked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """What stays the same throughout a search."""

    scored: Callable[[jax.Array, Any], Scored]
    attributes: StepAttributes
    top_k: TopKAttributes
    is_logits: bool
    cache_axes: Any
    max_len_b: jax.Array | None
    src_length_b: jax.Array | None  # None: all of S
    implementation: Implementation

    def run(self, carry: Carry) -> Carry:
        return lax.while_loop(self._goes_on, self._advance, carry)

    def _goes_on(self, carry: Carry) -> jax.Array:
        return (carry.step < len(carry.state.hyps)) & ~carry.state.all_done

    def _advance(self, carry: Carry) -> Carry:
        a, t, old = self.attributes, carry.step, carry.state
        scored = self.scored(carry.ids_N, carry.cache)
        state = self._step(scored, old, t)
        parent_N, N = state.prev_hyps[t], len(carry.ids_N)
        if a.beam_independence:
            # The step does not write the rows of a beam that was done.
            parent_N = jnp.where(jnp.tile(old.beam_done, a.num_hyps_per_beam), jnp.arange(N), parent_N)
        # A beam's only hyp has no other place to go to.
        axes = self.cache_axes if a.num_hyps_per_beam > 1 else None
        covered_NxS, penalty_TxN = carry.covered_NxS, carry.penalty_TxN
        if self.top_k.coverage_penalty > 0:
            covered_NxS += scored.atten_NxS
            penalty_TxN = penalty_TxN.at[t].set(self._coverage(covered_NxS))
            covered_NxS = covered_NxS[parent_N]
        atten_TxNxS = carry.atten_TxNxS
        if atten_TxNxS.shape[-1]:
            atten_TxNxS = atten_TxNxS.at[t].set(scored.atten_NxS)
        return Carry(
            step=t + 1,
            ids_N=state.hyps[t],
            cache=caching.reorder(scored.cache, parent_N, axes),
            state=state,
            covered_NxS=covered_NxS,
            penalty_TxN=penalty_TxN,
            atten_TxNxS=atten_TxNxS,
        )

    def _step(self, scored: Scored, old: BeamSearchState, t: jax.Array) -> BeamSearchState:
        a, k = self.attributes, self.attributes.num_hyps_per_beam
        scores, tokens_NxM = scored.scores, None
        if self.is_logits and a.eoc_id < 0 and a.compat is None:
            if a.eos_id >= scores.shape[1]:
                raise ValueError(f"eos_id must be < V = {scores.shape[1]} of step_fn's scores (got {a.eos_id})")
            # One token more than the step looks at, as EOS may be among them.
            scores, tokens_NxM = short_list(scores, a.eos_id, a.num_entries + 1, self.implementation)
            a = dataclasses.replace(a, eos_id=EOS)
        elif self.is_logits:
            # The labels of a hyp are compared with its next tokens, and Lingvo's defects depend on their order.
            scores = log_softmax(scores)
        new = beam_search_step(
            scores,
            jnp.zeros((len(scores), 0), jnp.float32),
            old,
            t,
            scored.is_last_chunk_N,
            last_steps=None if self.max_len_b is None else jnp.minimum(self.max_len_b, len(old.hyps)) - 1,
            **dataclasses.asdict(a),
            implementation=self.implementation,
        )
        if self.max_len_b is not None:
            beam_done_b = new.beam_done | (t + 1 >= self.max_len_b)
            new = new._replace(beam_done=beam_done_b, all_done=jnp.all(beam_done_b))
        if tokens_NxM is not None:
            is_new_N = new.cumulative_scores > EMPTY_SCORE
            if a.beam_independence:
                is_new_N &= ~jnp.tile(old.beam_done, k)
            token_N = jnp.where(is_new_N, tokens_NxM[new.prev_hyps[t], new.hyps[t]], new.hyps[t])
            eos_id_N = jnp.where(new.done_hyps[t], self.attributes.eos_id, 0)
            new = new._replace(hyps=new.hyps.at[t].set(token_N), eos_ids=new.eos_ids.at[t].set(eos_id_N))
        return new

    def _coverage(self, covered_NxS: jax.Array) -> jax.Array:
        """f32[N], what `top_k_hyps` adds to the score of a hyp that has attended to its source so much."""
        ratio, length_N = self.top_k.target_seq_length_ratio, None
        if self.src_length_b is not None:
            length_N = jnp.tile(self.src_length_b, self.attributes.num_hyps_per_beam)
        return ratio * self.top_k.coverage_penalty * log_coverage(covered_NxS, length_N, ratio)
