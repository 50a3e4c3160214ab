"""The n-best from a beam search's arrays (Lingvo: TopKFromBeamSearchOuts, core/ops/beam_search_step_op_kernels.cc)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from raylingvo.ops import _native
from raylingvo.ops.search._beam_search_attributes import Compat, TopKHyps
from raylingvo.ops.search._search_arguments import floats, integers
from raylingvo.ops.search.beam_search_state import BeamSearchState
from raylingvo.ops.search.top_k_hyps import top_k_hyps

# b beams, k hyps per beam, N = b*k slots (slot i is hyp i // b of beam i % b), T steps, S source positions.


def top_k_from_beam_search_outs(
    hyps: Any,
    prev_hyps: Any,
    done_hyps: Any,
    cumulative_scores: Any,
    eos_scores: Any,
    scores: Any = None,
    atten_probs: Any = None,
    eos_atten_probs: Any = None,
    cumulative_atten_probs: Any = None,
    length_normalization: float = 0.0,
    coverage_penalty: float = 0.0,
    *,
    num_hyps_per_beam: int,
    max_seq_length: int,
    eos_id: int = 2,
    target_seq_length_ratio: float = 1.0,
    compat: Compat = None,
    implementation: _native.Implementation = "auto",
) -> TopKHyps:
    """`top_k_hyps` for the arrays of any beam search, with attention that is summed already.

    The raw score of the hyp that ends in slot i at step t is cumulative_scores[t - 1, i] + eos_scores[t, i]. Unlike
    `top_k_hyps`, coverage is over all S positions: let padding have an attention of 0.5 and more.

    Args:
      hyps, prev_hyps: i32[T, N], done_hyps: bool[T, N], eos_scores: floats [T, N]: as in `BeamSearchState`.
      cumulative_scores: floats [T, N], raw score of the hyp in each slot after each step.
      scores, atten_probs, eos_atten_probs: not used. They went into Lingvo's protos (populate_topk_hyps), of which
        there are none here.
      cumulative_atten_probs: floats [T, N, S], the sum of the attention of the hyp that ends in slot i at step t, this
        step's included; needed if coverage_penalty > 0.
      length_normalization, coverage_penalty, target_seq_length_ratio: as in `top_k_hyps`.
      num_hyps_per_beam: k, > 0, also how many hyps of each beam are returned.
      max_seq_length: > 0, the width of ids. A longer hyp is cut there, and its length is that (Lingvo writes beyond).
      eos_id: the token that ends each hyp.
      compat: "lingvo": where there is no hyp, the score is 0.0, above that of every real one.
      implementation: "auto", "xla" or "cpp".

    Scores are summed in float32, in whatever dtype they come (Lingvo's op sums bfloat16 in bfloat16).

    Returns:
      ids i32[N, max_seq_length], lens i32[N], scores f32[N]: hyp j of beam i in row i * k + j, not as in the state.
      Where there is no hyp: 0, 0 and -inf.

    Raises:
      ValueError: an argument is out of range, or of a wrong shape or dtype.
    """
    del scores, atten_probs, eos_atten_probs
    hyps = jnp.asarray(hyps)
    if hyps.ndim != 2 or num_hyps_per_beam < 1 or hyps.shape[1] % num_hyps_per_beam:
        raise ValueError(f"hyps must be [T, b * num_hyps_per_beam = b * {num_hyps_per_beam}] (got {list(hyps.shape)})")
    T, N = hyps.shape
    if max_seq_length < 1:
        raise ValueError(f"max_seq_length must be > 0 (got {max_seq_length})")
    hyps, prev_hyps = integers("hyps", hyps, (T, N)), integers("prev_hyps", prev_hyps, (T, N))
    done_hyps = jnp.asarray(done_hyps)
    if done_hyps.shape != (T, N) or done_hyps.dtype != bool:
        raise ValueError(f"done_hyps must be bool{[T, N]} (got {done_hyps.dtype}{list(done_hyps.shape)})")
    cum_TxN = floats("cumulative_scores", cumulative_scores, (T, N))
    eos_TxN = floats("eos_scores", eos_scores, (T, N))
    covered_TxNxS = jnp.zeros((T, N, 0), jnp.float32)
    if coverage_penalty > 0:
        if cumulative_atten_probs is None:
            raise ValueError(f"coverage_penalty must be 0 without cumulative_atten_probs (got {coverage_penalty})")
        covered_TxNxS = floats("cumulative_atten_probs", cumulative_atten_probs, (T, N, None))

    before_TxN = jnp.concatenate([jnp.zeros((1, N), jnp.float32), cum_TxN[:-1]])
    b, S = N // num_hyps_per_beam, covered_TxNxS.shape[-1]
    state = BeamSearchState.create(b, num_hyps_per_beam, T, S)._replace(
        hyps=hyps,
        prev_hyps=prev_hyps,
        done_hyps=done_hyps,
        eos_ids=jnp.full((T, N), eos_id, jnp.int32),
        eos_global_scores=before_TxN + eos_TxN,
        # As if all attention had been got in the last step: then its sum over the steps is what was given.
        eos_atten_probs=covered_TxNxS,
    )
    best = top_k_hyps(
        state,
        num_hyps_per_beam,
        length_normalization=length_normalization,
        coverage_penalty=coverage_penalty,
        target_seq_length_ratio=target_seq_length_ratio,
        compat=compat,
        implementation=implementation,
    )
    ids_NxL = best.ids.reshape(N, T)[:, :max_seq_length]
    ids_NxL = jnp.pad(ids_NxL, ((0, 0), (0, max(0, max_seq_length - T))))
    return TopKHyps(ids_NxL, jnp.minimum(best.lens, max_seq_length).reshape(N), best.scores.reshape(N))
