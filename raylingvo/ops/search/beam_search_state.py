"""The state of a beam search: what has been chosen, and what has ended."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

# b beams (source sentences), k hyps per beam, N = b*k slots, T steps, S source positions.
# Slots are hyp-major: slot i is hyp i // b of beam i % b.

NOTHING_ENDED = -1e36  # the best score of a beam none of whose hyps has ended


class BeamSearchState(NamedTuple):
    """Histories of T steps. Row t of `scores`, `hyps`, `prev_hyps` and `atten_probs` describes slot i after step t;
    row t of `done_hyps` and `eos_*` slot i as it was before.

    best_scores: f32[b], raw score of the best hyp that has ended, -1e36 if none has.
    cumulative_scores: f32[N], raw score of the hyp in each slot, without a terminal symbol.
    scores: f32[T, N], local score of the chosen token.
    hyps: i32[T, N], the chosen token.
    prev_hyps: i32[T, N], the slot in row t - 1 that it continues.
    done_hyps: bool[T, N], whether slot i ended at step t.
    eos_ids: i32[T, N], its terminal symbol (eos or eoc), 0 where it did not end.
    eos_scores: f32[T, N], that symbol's local score.
    eos_global_scores: f32[T, N], the raw score of the hyp that ended, the symbol included.
    atten_probs: f32[T, N, S], attention of the parent when it was continued.
    eos_atten_probs: f32[T, N, S], attention of the slot when it ended.
    beam_done: bool[b], all_done: bool[].
    """

    best_scores: jax.Array
    cumulative_scores: jax.Array
    scores: jax.Array
    hyps: jax.Array
    prev_hyps: jax.Array
    done_hyps: jax.Array
    eos_ids: jax.Array
    eos_scores: jax.Array
    eos_global_scores: jax.Array
    atten_probs: jax.Array
    eos_atten_probs: jax.Array
    beam_done: jax.Array
    all_done: jax.Array

    @classmethod
    def create(cls, num_beams: int, num_hyps_per_beam: int, max_steps: int, src_len: int) -> BeamSearchState:
        """The state before the first step. src_len 0: no attention is kept."""
        T, N = max_steps, num_beams * num_hyps_per_beam
        return cls(
            best_scores=jnp.full(num_beams, NOTHING_ENDED, jnp.float32),
            cumulative_scores=jnp.zeros(N, jnp.float32),
            scores=jnp.zeros((T, N), jnp.float32),
            hyps=jnp.zeros((T, N), jnp.int32),
            prev_hyps=jnp.zeros((T, N), jnp.int32),
            done_hyps=jnp.zeros((T, N), bool),
            eos_ids=jnp.zeros((T, N), jnp.int32),
            eos_scores=jnp.zeros((T, N), jnp.float32),
            eos_global_scores=jnp.zeros((T, N), jnp.float32),
            atten_probs=jnp.zeros((T, N, src_len), jnp.float32),
            eos_atten_probs=jnp.zeros((T, N, src_len), jnp.float32),
            beam_done=jnp.zeros(num_beams, bool),
            all_done=jnp.zeros((), bool),
        )


def check_state(state: BeamSearchState) -> tuple[int, int, int]:
    """(T, N, S) of a state. Raises ValueError if its arrays are not of the shapes and dtypes that belong together."""
    b = len(state.best_scores)
    if state.hyps.ndim != 2 or state.atten_probs.ndim != 3 or not b or state.hyps.shape[1] % b:
        raise ValueError(
            f"state.hyps must be [T, N], state.atten_probs [T, N, S], with N a multiple of the {b} beams of "
            f"state.best_scores (got {list(state.hyps.shape)} and {list(state.atten_probs.shape)})"
        )
    (T, N), S = state.hyps.shape, state.atten_probs.shape[-1]
    f32, i32, flag = jnp.dtype(jnp.float32), jnp.dtype(jnp.int32), jnp.dtype(bool)
    shapes = [(b,), (N,), *[(T, N)] * 7, *[(T, N, S)] * 2, (b,), ()]  # in the order of the fields
    dtypes = [f32, f32, f32, i32, i32, flag, i32, f32, f32, f32, f32, flag, flag]
    for name, array, shape, dtype in zip(BeamSearchState._fields, state, shapes, dtypes, strict=True):
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"state.{name} must be {dtype}{list(shape)} (got {array.dtype}{list(array.shape)})")
    return T, N, S
