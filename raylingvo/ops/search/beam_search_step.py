"""One step of a beam search (Lingvo: core/ops/beam_search_step_op_kernels.cc), on arrays and on any device."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from raylingvo.ops import _native
from raylingvo.ops.search import _beam_search_step_cpp, _beam_search_step_xla
from raylingvo.ops.search._beam_search_attributes import NO_ENTRIES, Compat, StepAttributes
from raylingvo.ops.search.beam_search_state import BeamSearchState, check_state

# b beams, k hyps per beam, N = b*k slots (slot i is hyp i // b of beam i % b), T steps, S source positions, V tokens.


def beam_search_step(
    log_probs: Any,
    atten_probs: Any,
    state: BeamSearchState,
    cur_step: Any,
    is_last_chunk: Any = None,
    *,
    last_steps: Any = None,
    eos_id: int,
    num_hyps_per_beam: int,
    beam_size: float = 3.0,
    eoc_id: int = -1,
    valid_eos_max_logit_delta: float = 5.0,
    local_eos_threshold: float = -100.0,
    merge_paths: bool = False,
    allow_empty_terminated_hyp: bool = True,
    ensure_full_beam: bool = False,
    force_eos_in_last_step: bool = False,
    force_eos_in_top_k: bool = False,
    force_last_chunk_eoc_in_top_k: bool = False,
    merged_topk_buffer_size_factor: int = 2,
    beam_independence: bool = False,
    compat: Compat = None,
    implementation: _native.Implementation = "auto",
) -> BeamSearchState:
    """Continues every hyp by one token, sets aside those that end, and keeps the k best of each beam.

    Of each hyp the k + 1 best tokens are looked at (k + 2 with eoc_id), by cumulative plus local score in float32;
    equal scores: the lower token first, then the lower slot. Row t = cur_step of the histories is written; slots that
    get no hyp (fewer than k continuations) score -1e30, name a slot of their own beam as parent and are not continued.
    Every shape is static and cur_step may be traced, so a whole search can be one `lax.while_loop`.

    Args:
      log_probs: f32 or bf16 [N, V], local scores of the next token, higher is better (natural logarithms, for the
        defaults to make sense). NaN and -inf are never chosen; mask with -1e30. At step 0 only rows 0..b-1 are read.
      atten_probs: floats [N, S], the attention that led to log_probs; S = 0 if there is none.
      state: `BeamSearchState`, that of the step before.
      cur_step: i32[], t in [0, T).
      is_last_chunk: bool[N] or None (all False), whether a slot has reached the end of its source; read if eoc_id >= 0.
      last_steps: i32[b], which step is the last of each beam, for force_eos_in_last_step; None: T - 1.
      eos_id: in [0, V), the token that ends a hyp. It never stays on the beam: it ends the hyp or is dropped.
      num_hyps_per_beam: k.
      beam_size: nats, not a count: a beam is done when its k hyps all score <= its best ended hyp - beam_size.
      eoc_id: epsilon, the token that consumes a chunk of the source without a label; < 0 if there is none. In the last
        chunk it ends the hyp, if its scores pass, or is dropped. Where both EOS and EOC pass, the lower score stays.
      valid_eos_max_logit_delta: nats; a terminal symbol passes if it scores > the best token of its hyp - this,
      local_eos_threshold: and its local score is > this.
      merge_paths: hyps that spell the same labels, epsilons left out, become the better one with the probability of
        both; needs eoc_id. Ended hyps are not merged.
      allow_empty_terminated_hyp: whether EOC may end a hyp without labels.
      ensure_full_beam: a beam with fewer than k ended hyps is not done.
      force_eos_in_last_step: in a beam's last step every hyp ends with EOS, whatever its score (unless EOC ends it).
      force_eos_in_top_k, force_last_chunk_eoc_in_top_k: EOS, in the last chunk EOC, is looked at even if it is not
        among the best tokens (it takes the place of the last of them, EOC of the last but one); it must still pass.
      merged_topk_buffer_size_factor: > 1; how lossy compat="lingvo" merges (k + 2: not at all). Otherwise unused:
        merging is exact.
      beam_independence: the state of a beam that is done stays as it is; otherwise it goes on and may end more hyps.
      compat: "lingvo" for its defects: a slot without a hyp scores 0.0 (which outranks real hyps) and has parent 0,
        maybe of another beam; merging drops candidates before they can merge; EOS in the last step is not forced if
        eos_id >= 2 * (k + 1) (or + 2 with eoc) and better tokens come before it, nor where EOC took its place.
      implementation: "auto", "xla" or "cpp".

    Returns:
      The state after the step. Scores are f32. beam_done stays True once it is.

    Raises:
      ValueError: a shape, a dtype or an attribute is wrong, or cur_step is not in [0, T).
      jax.errors.JaxRuntimeError: all scores of a hyp are NaN ("No entries in TopK ..."). Inside jit XLA cannot raise:
        best_scores and cumulative_scores of the beam become and stay NaN, for the caller to look at.
    """
    attributes = StepAttributes.from_arguments(locals())
    log_probs, atten_probs = jnp.asarray(log_probs), jnp.asarray(atten_probs)
    cur_step = jnp.asarray(cur_step, jnp.int32)
    N = _check(log_probs, atten_probs, state, cur_step, attributes)
    is_last_chunk = jnp.zeros(N, bool) if is_last_chunk is None else jnp.asarray(is_last_chunk)
    if eoc_id < 0 and is_last_chunk.shape == (0,):  # Lingvo's way to say that there is none
        is_last_chunk = jnp.zeros(N, bool)
    if is_last_chunk.shape != (N,) or is_last_chunk.dtype != bool:
        raise ValueError(
            f"is_last_chunk must be bool[N = {N}] (got {is_last_chunk.dtype}{list(is_last_chunk.shape)}): one per slot"
        )
    b = N // num_hyps_per_beam
    last_steps = jnp.full(b, len(state.hyps) - 1) if last_steps is None else jnp.asarray(last_steps)
    if last_steps.shape != (b,) or not jnp.issubdtype(last_steps.dtype, jnp.integer):
        raise ValueError(
            f"last_steps must be integers [b = {b}] (got {last_steps.dtype}{list(last_steps.shape)}): one per beam"
        )

    new_state = _native.dispatch(
        implementation,
        xla=_beam_search_step_xla.step,
        cpp=_beam_search_step_cpp.step,
        args=(log_probs, atten_probs, state, cur_step, is_last_chunk, last_steps.astype(jnp.int32)),
        attributes=attributes,
    )
    if not isinstance(new_state.best_scores, Tracer) and np.isnan(new_state.best_scores).any():
        raise jax.errors.JaxRuntimeError(f"INTERNAL: {NO_ENTRIES}")
    return new_state


def _check(log_probs, atten_probs, state: BeamSearchState, cur_step, attributes: StepAttributes) -> int:
    k = attributes.num_hyps_per_beam
    if log_probs.ndim != 2 or log_probs.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"log_probs must be float32 or bfloat16 [N, V] (got {log_probs.dtype}{list(log_probs.shape)})")
    N, V = log_probs.shape
    if N == 0 or N % k:
        raise ValueError(f"log_probs must have b * num_hyps_per_beam = b * {k} rows (got {N})")
    if max(attributes.eos_id, attributes.eoc_id) >= V:
        raise ValueError(f"eos_id {attributes.eos_id} and eoc_id {attributes.eoc_id} must be < V = {V} of log_probs")
    T, state_N, S = check_state(state)
    if state_N != N or len(state.best_scores) != N // k:
        raise ValueError(
            f"state must be of N = {N} slots and {N // k} beams, as log_probs is [N, V] and num_hyps_per_beam is {k} "
            f"(got {state_N} and {len(state.best_scores)})"
        )
    if atten_probs.shape != (N, S) or not jnp.issubdtype(atten_probs.dtype, jnp.floating):
        raise ValueError(
            f"atten_probs must be floats [N, S] = [{N}, {S}], as the state keeps "
            f"(got {atten_probs.dtype}{list(atten_probs.shape)})"
        )
    if cur_step.ndim or (not isinstance(cur_step, Tracer) and not 0 <= int(cur_step) < T):
        raise ValueError(f"cur_step must be a scalar in [0, T = {T}) (got {cur_step})")
    return N
