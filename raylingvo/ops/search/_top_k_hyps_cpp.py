"""The n-best of a beam search in C++. What it does: `top_k_hyps`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from raylingvo.ops import _native
from raylingvo.ops.search._beam_search_attributes import TopKAttributes, TopKHyps
from raylingvo.ops.search.beam_search_state import BeamSearchState


def top_k(state: BeamSearchState, src_lengths: jax.Array, attributes: TopKAttributes) -> TopKHyps:
    """src_lengths: i32[b]. All arguments are checked."""
    a = attributes
    b, T = len(src_lengths), len(state.hyps)
    results = (
        jax.ShapeDtypeStruct((b, a.k, T), jnp.int32),
        jax.ShapeDtypeStruct((b, a.k), jnp.int32),
        jax.ShapeDtypeStruct((b, a.k), jnp.float32),
    )
    return TopKHyps(
        *_native.call(
            "RaylingvoTopKHyps",
            results,
            state.hyps,
            state.prev_hyps,
            state.done_hyps,
            state.eos_ids,
            state.eos_global_scores,
            state.atten_probs,
            state.eos_atten_probs,
            src_lengths,
            length_normalization=np.float32(a.length_normalization),
            coverage_penalty=np.float32(a.coverage_penalty),
            target_seq_length_ratio=np.float32(a.target_seq_length_ratio),
            missing_score=np.float32(-np.inf if a.compat is None else 0.0),
        )
    )
