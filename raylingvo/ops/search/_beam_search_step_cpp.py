"""One step of a beam search in C++. What it does: `beam_search_step`; its rules: `_beam_search_attributes`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from raylingvo.ops import _native
from raylingvo.ops.search._beam_search_attributes import StepAttributes
from raylingvo.ops.search.beam_search_state import BeamSearchState


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
    them checked.

    The new state is in the memory of the old one: in a loop, or a jitted function that the state is donated to, only
    row cur_step is written, however long the histories are. Elsewhere XLA copies them first.
    """
    a = attributes
    inputs = (log_probs, atten_probs.astype(jnp.float32), cur_step, is_last_chunk, last_steps)
    results = tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in state)
    return BeamSearchState(
        *_native.call(
            "RaylingvoBeamSearchStep",
            results,
            *inputs,
            *state,
            input_output_aliases={len(inputs) + i: i for i in range(len(state))},
            eos_id=np.int64(a.eos_id),
            eoc_id=np.int64(a.eoc_id),
            num_hyps_per_beam=np.int64(a.num_hyps_per_beam),
            beam_size=np.float32(a.beam_size),
            valid_eos_max_logit_delta=np.float32(a.valid_eos_max_logit_delta),
            local_eos_threshold=np.float32(a.local_eos_threshold),
            merge_paths=np.bool_(a.merge_paths),
            allow_empty_terminated_hyp=np.bool_(a.allow_empty_terminated_hyp),
            ensure_full_beam=np.bool_(a.ensure_full_beam),
            force_eos_in_last_step=np.bool_(a.force_eos_in_last_step),
            force_eos_in_top_k=np.bool_(a.force_eos_in_top_k),
            force_last_chunk_eoc_in_top_k=np.bool_(a.force_last_chunk_eoc_in_top_k),
            merged_topk_buffer_size_factor=np.int64(a.merged_topk_buffer_size_factor),
            beam_independence=np.bool_(a.beam_independence),
            is_lingvo=np.bool_(a.compat == "lingvo"),
        )
    )
