"""Beam search, the whole loop on the device (Lingvo: core/beam_search_helper.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from raylingvo.ops._native import Implementation
from raylingvo.ops.search._beam_search_attributes import NO_ENTRIES, Compat, StepAttributes, TopKAttributes
from raylingvo.ops.search._beam_search_loop import Carry, Scored, Search
from raylingvo.ops.search._top_k_logits import log_softmax
from raylingvo.ops.search.beam_search_state import BeamSearchState
from raylingvo.ops.search.top_k_hyps import top_k_hyps

# b beams (source sentences), k hyps per beam, N = b*k slots (slot i is hyp i // b of beam i % b), T steps, S source
# positions, V vocabulary.


class BeamSearchResult(NamedTuple):
    """The k best hyps of each beam, best first. Beams come first here, unlike in slots.

    ids: i32[b, k, T], the terminal symbol included, 0 behind it. lens: i32[b, k], 0 where there is no hyp.
    scores: f32[b, k], normalised; -inf where there is no hyp.
    token_scores: f32[b, k, T], the local score of each token; they sum to the raw score, unless paths were merged.
    atten: f32[b, k, T, S], the attention that led to each token; None if it was not asked for.
    num_steps: i32[], how often step_fn was called.
    """

    ids: jax.Array
    lens: jax.Array
    scores: jax.Array
    token_scores: jax.Array
    atten: jax.Array | None
    num_steps: jax.Array


def beam_search(
    step_fn: Callable[[jax.Array, Any], tuple[Any, ...]],
    init_state: Any,
    *,
    num_beams: int,
    num_hyps_per_beam: int,
    max_steps: int,
    eos_id: int,
    start_ids: Any,
    scores: Literal["log_probs", "logits"] = "log_probs",
    cache_axes: Any = 0,
    transform: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]] | None = None,
    transform_state: Any = None,
    max_lens: Any = None,
    src_lengths: Any = None,
    length_normalization: float = 0.0,
    coverage_penalty: float = 0.0,
    target_seq_length_ratio: float = 1.0,
    return_atten: bool = False,
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
    implementation: Implementation = "auto",
) -> BeamSearchResult:
    """The k best hyps of each beam: `beam_search_step` until all beams are done, then `top_k_hyps`.

    One `lax.while_loop`, with back-pointers and without a word to the host. Call it inside jit: outside, step_fn is
    compiled anew by every call.

    step_fn(ids i32[N], cache) -> (scores [N, V], atten_probs [N, S] or None, cache) scores the next token of each hyp,
    given its newest one. With eoc_id >= 0 it may return a fourth, is_last_chunk bool[N]. The cache that it returns is
    that of the hyps as they were; it gets it back as that of the hyps that continue them: arrays are gathered along
    axis 0, by default; a `CacheIndex` follows the hyps at a fraction of the cost.

    Args:
      step_fn: see above; traced, like the body of any loop.
      init_state: the first cache: a tree of arrays, whose shapes and dtypes stay the same.
      num_beams: b. num_hyps_per_beam: k. max_steps: T, > 0.
      eos_id: in [0, V).
      start_ids: i32[b] or i32[N], what step_fn gets first.
      scores: "log_probs": step_fn's scores are f32 or bf16 log-probabilities, or any other that add up. "logits": they
        are not normalised. Then no log-softmax of all V is written: of each row the logarithm of the sum, and the k + 2
        best tokens, are enough (with eoc_id >= 0 or compat they are not). The same hyps up to the order of scores that
        are equal in float32. NaNs are left out of the sum, and never chosen.
      cache_axes: which axis of the cache's arrays counts slots; an int or None (stays as it is) for all, or a tree of
        them that is a prefix of the cache. Arrays of rank 0 stay as they are.
      transform: transform(log_probs f32[N, V], ids i32[N], state) -> (scores f32[N, V], state) has the last word on the
        scores that step_fn returns (logits are normalised for it): `biased_scores`, `stochastic_scores` and
        `constrained_scores`, with their other arguments bound. Its state follows the hyps as the cache does.
      transform_state: the first.
      max_lens: i32[b], how many steps each beam has, at most T; in its last, force_eos_in_last_step holds. None: T.
      src_lengths: i32[b], source positions of each beam that coverage counts; None: all S.
      length_normalization, coverage_penalty, target_seq_length_ratio: see `top_k_hyps`.
      return_atten: whether to return the attention; that keeps f32[T, N, S].
      beam_size .. beam_independence, compat: see `beam_search_step` and `top_k_hyps`.
      implementation: "auto", "xla" or "cpp".

    Returns:
      `BeamSearchResult`.

    Raises:
      ValueError: a shape, a dtype or an attribute is wrong; the message names it.
      jax.errors.JaxRuntimeError: all scores of a hyp are NaN ("No entries in TopK ..."). Inside jit, XLA cannot raise:
        the scores of that beam are NaN (the C++ implementation raises there too).
    """
    attributes = StepAttributes.from_arguments(locals())
    top_k = TopKAttributes(
        k=num_hyps_per_beam,
        length_normalization=length_normalization,
        coverage_penalty=coverage_penalty,
        target_seq_length_ratio=target_seq_length_ratio,
        compat=compat,
    )
    b, k, T = num_beams, num_hyps_per_beam, max_steps
    if b < 1 or T < 1:
        raise ValueError(f"num_beams and max_steps must be > 0 (got {b} and {T})")
    if scores not in ("log_probs", "logits"):
        raise ValueError(f"scores must be 'log_probs' or 'logits' (got {scores!r})")
    ids_N = _integers("start_ids", start_ids, (b,), (b * k,))
    ids_N = jnp.tile(ids_N, k) if ids_N.shape == (b,) else ids_N
    cache = jax.tree.map(jnp.asarray, init_state)
    scored, is_logits = _checked(step_fn, eoc_id), scores == "logits"
    if transform is not None:
        scored, is_logits = _transformed(scored, transform, is_logits), False
        cache, cache_axes = (cache, jax.tree.map(jnp.asarray, transform_state)), (cache_axes, 0)
    S = jax.eval_shape(scored, ids_N, cache).atten_NxS.shape[1]
    if return_atten and not S:
        raise ValueError("return_atten must be False: step_fn returns no attention")
    if coverage_penalty > 0 and not S:
        raise ValueError(f"coverage_penalty must be 0 (got {coverage_penalty}): step_fn returns no attention")

    has_coverage = top_k.coverage_penalty > 0
    search = Search(
        scored=scored,
        attributes=attributes,
        top_k=top_k,
        is_logits=is_logits,
        cache_axes=cache_axes,
        max_len_b=None if max_lens is None else _integers("max_lens", max_lens, (b,)),
        src_length_b=None if src_lengths is None else _integers("src_lengths", src_lengths, (b,)),
        implementation=implementation,
    )
    state = BeamSearchState.create(b, k, T, 0)
    if search.max_len_b is not None:
        beam_done_b = search.max_len_b < 1
        state = state._replace(beam_done=beam_done_b, all_done=jnp.all(beam_done_b))
    last = search.run(
        Carry(
            step=jnp.zeros((), jnp.int32),
            ids_N=ids_N,
            cache=cache,
            state=state,
            covered_NxS=jnp.zeros((b * k, S if has_coverage else 0), jnp.float32),
            penalty_TxN=jnp.zeros((T if has_coverage else 0, b * k), jnp.float32),
            atten_TxNxS=jnp.zeros((T, b * k, S if return_atten else 0), jnp.float32),
        )
    )
    result = _n_best(last, search)
    if not isinstance(result.scores, Tracer) and np.isnan(last.state.best_scores).any():
        raise jax.errors.JaxRuntimeError(f"INTERNAL: {NO_ENTRIES}")
    return result


def _integers(name: str, value: Any, *shapes: tuple[int, ...]) -> jax.Array:
    array = jnp.asarray(value)
    if array.shape not in shapes or not jnp.issubdtype(array.dtype, jnp.integer):
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{name} must be integers {expected} (got {array.dtype}{list(array.shape)})")
    return array.astype(jnp.int32)


def _checked(step_fn: Callable[[jax.Array, Any], tuple[Any, ...]], eoc_id: int) -> Callable[[jax.Array, Any], Scored]:
    """step_fn with what it returns looked at: a wrong shape there shows as an error far from here."""

    def scored(ids_N: jax.Array, cache: Any) -> Scored:
        N = len(ids_N)
        returned = step_fn(ids_N, cache)
        if not isinstance(returned, tuple) or len(returned) not in ((3, 4) if eoc_id >= 0 else (3,)):
            more = ", is_last_chunk" if eoc_id >= 0 else ""
            raise ValueError(
                f"step_fn must return (scores, atten_probs or None, cache{more}) (got {type(returned).__name__}"
                f"{f' of {len(returned)}' if isinstance(returned, tuple) else ''})"
            )
        scores, atten, new_cache, *rest = returned
        if scores.ndim != 2 or len(scores) != N or scores.dtype not in (jnp.float32, jnp.bfloat16):
            raise ValueError(
                f"step_fn must return float32 or bfloat16 scores [N = {N}, V] (got {scores.dtype}{list(scores.shape)})"
            )
        atten = jnp.zeros((N, 0), jnp.float32) if atten is None else atten
        if atten.ndim != 2 or len(atten) != N:
            raise ValueError(f"step_fn must return atten_probs [N = {N}, S] or None (got {list(atten.shape)})")
        describe = lambda tree: jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", tree)  # noqa: E731
        if describe(cache) != describe(new_cache):
            raise ValueError(
                f"step_fn must return a cache like the one it gets, {describe(cache)} (got {describe(new_cache)})"
            )
        return Scored(scores, atten.astype(jnp.float32), new_cache, rest[0] if rest else None)

    return scored


def _transformed(
    scored: Callable[[jax.Array, Any], Scored],
    transform: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]],
    is_logits: bool,
) -> Callable[[jax.Array, Any], Scored]:
    """A decoder whose cache is (its cache, the state of the transform)."""

    def transformed(ids_N: jax.Array, caches: Any) -> Scored:
        cache, state = caches
        decoded = scored(ids_N, cache)
        log_prob_NxV = decoded.scores.astype(jnp.float32)
        if is_logits:
            log_prob_NxV = log_softmax(log_prob_NxV)
        score_NxV, state = transform(log_prob_NxV, ids_N, state)
        return decoded._replace(scores=score_NxV, cache=(decoded.cache, state))

    return transformed


def _n_best(last: Carry, search: Search) -> BeamSearchResult:
    """Ranks what has ended, and goes back from the end of the best to their first tokens."""
    state, a = last.state, search.top_k
    T, N = state.hyps.shape
    b = len(state.best_scores)
    step_Tx1 = jnp.arange(T)[:, None]
    if search.max_len_b is not None:
        # A beam that is done may have gone on.
        is_in_time_TxN = step_Tx1 < jnp.tile(search.max_len_b, N // b)[None]
        state = state._replace(done_hyps=state.done_hyps & is_in_time_TxN)
    if a.coverage_penalty > 0:
        # top_k_hyps divides what the loop has added by the length of the hyp.
        divisor_Tx1 = ((step_Tx1 + 6).astype(jnp.float32) / 5.0) ** a.length_normalization
        state = state._replace(eos_global_scores=state.eos_global_scores + last.penalty_TxN * divisor_Tx1)
    # In place of its terminal symbol a hyp names the slot where it ended.
    slots_TxN = jnp.broadcast_to(jnp.arange(N, dtype=jnp.int32), (T, N))
    hyps = top_k_hyps(
        state._replace(eos_ids=slots_TxN),
        a.k,
        length_normalization=a.length_normalization,
        compat=a.compat,
        implementation=search.implementation,
    )
    is_hyp_bxk = hyps.lens > 0
    row_bxk = jnp.maximum(hyps.lens - 1, 0)
    slot_bxk = jnp.take_along_axis(hyps.ids, row_bxk[..., None], axis=2)[..., 0]

    def walk_back(slot_bxk, row):
        """Where each hyp was after a row (at its end: before), and before it."""
        parent_N, r = row
        before_bxk = jnp.where(r < row_bxk, parent_N[slot_bxk], slot_bxk)
        return before_bxk, (slot_bxk, before_bxk)

    _, (slot_Txbxk, before_Txbxk) = lax.scan(walk_back, slot_bxk, (state.prev_hyps, jnp.arange(T)), reverse=True)
    slot_bxkxT, before_bxkxT = slot_Txbxk.transpose(1, 2, 0), before_Txbxk.transpose(1, 2, 0)
    step_1x1xT = jnp.arange(T)[None, None]
    is_end_bxkxT = is_hyp_bxk[..., None] & (step_1x1xT == row_bxk[..., None])
    is_inside_bxkxT = step_1x1xT < hyps.lens[..., None]
    eos_id_bxk, eos_score_bxk = (history[row_bxk, slot_bxk] for history in (state.eos_ids, state.eos_scores))
    token_score_bxkxT = jnp.where(is_end_bxkxT, eos_score_bxk[..., None], state.scores[step_1x1xT, slot_bxkxT])
    atten = None
    if last.atten_TxNxS.shape[-1]:
        atten = jnp.where(is_inside_bxkxT[..., None], last.atten_TxNxS[step_1x1xT, before_bxkxT], 0.0)
    is_dead_bx1 = jnp.isnan(state.best_scores)[:, None]
    return BeamSearchResult(
        ids=jnp.where(is_end_bxkxT, eos_id_bxk[..., None], hyps.ids),
        lens=hyps.lens,
        scores=jnp.where(is_dead_bx1, jnp.nan, hyps.scores),
        token_scores=jnp.where(is_inside_bxkxT, token_score_bxkxT, 0.0),
        atten=atten,
        num_steps=last.step,
    )
