"""The n-best of a beam search (Lingvo: TopKTerminatedHyps and UnpackHyp, core/ops/beam_search_step_op_kernels.cc)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from raylingvo.ops import _native
from raylingvo.ops.search import _top_k_hyps_cpp, _top_k_hyps_xla
from raylingvo.ops.search._beam_search_attributes import Compat, TopKAttributes, TopKHyps
from raylingvo.ops.search.beam_search_state import BeamSearchState, check_state

# b beams, N slots, k hyps in the result, T steps, S source positions.


def top_k_hyps(
    state: BeamSearchState,
    k: int,
    *,
    length_normalization: float = 0.0,
    coverage_penalty: float = 0.0,
    target_seq_length_ratio: float = 1.0,
    src_lengths: Any = None,
    compat: Compat = None,
    implementation: _native.Implementation = "auto",
) -> TopKHyps:
    """The k best hyps of each beam that have ended, traced back to their first token.

    A hyp of len tokens, its terminal symbol included, scores its raw score / ((len + 5) / 5) ** length_normalization
    + r * coverage_penalty * sum over its source positions of log(clip(A / r, 0.001, 0.5)), where A is the attention
    that a position has got over all steps and r target_seq_length_ratio (as in GNMT, arXiv 1609.08144, but with 5 + len
    over 5, not 6, and a cap of 0.5, not 1: Lingvo's). Equal scores: the shorter hyp first, then that of the lower slot.
    A score that is NaN ranks last, with -inf.

    Args:
      state: that after the last step.
      k: how many hyps, > 0; it may differ from that of the search.
      length_normalization, coverage_penalty: >= 0.
      target_seq_length_ratio: > 0.
      src_lengths: i32[b], source positions of each beam, padding left out; those beyond S count as not attended to.
        None: S for all. Read if coverage_penalty > 0.
      compat: "lingvo": where there is no hyp, the score is 0.0, above that of every real one.
      implementation: "auto", "xla" or "cpp".

    Returns:
      ids i32[b, k, T], 0 behind the terminal symbol; lens i32[b, k], 0 where there is no hyp; scores f32[b, k], -inf
      there. Beams come first here, unlike in the state.

    Raises:
      ValueError: an argument is out of range or of a wrong shape.
    """
    attributes = TopKAttributes(
        k=k,
        length_normalization=length_normalization,
        coverage_penalty=coverage_penalty,
        target_seq_length_ratio=target_seq_length_ratio,
        compat=compat,
    )
    _, _, S = check_state(state)
    b = len(state.best_scores)
    src_lengths = jnp.full(b, S, jnp.int32) if src_lengths is None else jnp.asarray(src_lengths)
    if src_lengths.shape != (b,) or not jnp.issubdtype(src_lengths.dtype, jnp.integer):
        raise ValueError(
            f"src_lengths must be integers [b = {b}] (got {src_lengths.dtype}{list(src_lengths.shape)}): one per beam"
        )
    return _native.dispatch(
        implementation,
        xla=_top_k_hyps_xla.top_k,
        cpp=_top_k_hyps_cpp.top_k,
        args=(state, src_lengths.astype(jnp.int32)),
        attributes=attributes,
    )
