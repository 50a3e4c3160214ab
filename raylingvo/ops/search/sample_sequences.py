"""Sampling of sequences, the whole loop on the device (Lingvo: core/target_sequence_sampler.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from raylingvo.ops._native import Implementation
from raylingvo.ops.search._beam_search_attributes import Compat
from raylingvo.ops.search._categorical import categorical
from raylingvo.ops.search._sampling_filters import SamplingFilters
from raylingvo.ops.search._search_arguments import check_implementation, check_steps, check_token, checked, integers

# n rows, T steps, V vocabulary, M tokens that may be drawn.


class SampleSequencesResult(NamedTuple):
    """ids: i32[n, T], EOS behind a row's end. paddings: f32[n, T], 1 there: behind the first EOS. lens: i32[n], EOS
    included. scores: f32[n], the log-probability of the row: before any filter, at temperature 1. token_scores: f32[n,
    T], that of each token, 0 behind the end. logits: f32[n, T, V], the model's, 0 in steps that did not run; None if
    they were not asked for. Scores are NaN where logits were.
    """

    ids: jax.Array
    paddings: jax.Array
    lens: jax.Array
    scores: jax.Array
    token_scores: jax.Array
    logits: jax.Array | None


class _Carry(NamedTuple):
    step: jax.Array
    id_n: jax.Array  # what was drawn last
    carry: Any
    is_over_n: jax.Array
    all_ended: jax.Array
    ids_Txn: jax.Array
    is_padding_Txn: jax.Array
    score_Txn: jax.Array
    logits_TxnxV: jax.Array | None


def sample_sequences(
    logits_fn: Callable[..., Any],
    start_ids: Any,
    rng: jax.Array,
    *,
    max_steps: int,
    eos_id: int = 2,
    eoc_id: int = -1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_k_renormalize: bool = True,
    nucleus_p: float = 1.0,
    epsilon: float = 0.0,
    eps_fail_safe: bool = True,
    carry: Any = None,
    max_lens: Any = None,
    return_logits: bool = False,
    compat: Compat = None,
    implementation: Implementation = "auto",
) -> SampleSequencesResult:
    """Draws a sequence for each row, token by token, until each has EOS or is as long as it may be.

    One `lax.while_loop` that ends with the last row. Call it inside jit: outside, logits_fn is compiled anew by every
    call. For k samples of a source give it k rows. Draws are a function of rng, the step, and the number of rows.

    The filters act in this order: nucleus_p, epsilon (on what the first has left, normalised), top_k, temperature.

    Args:
      logits_fn: logits_fn(prev_ids i32[n], step i32[], carry) returns logits [n, V] of the next token, or (logits, new
        carry), or, with eoc_id >= 0, (logits, new carry, is_last_chunk bool[n]).
      start_ids: i32[n], what it gets first (Lingvo: target_sos_id).
      rng: a key (jax.random.key).
      max_steps: T, > 0 (Lingvo: target_seq_len).
      eos_id: in [0, V).
      eoc_id: the epsilon of a transducer: drawn at a last chunk it becomes EOS. -1: there is none.
      temperature: > 0; logits are divided by it.
      top_k: draw from so many best tokens; 0: from all.
      top_k_renormalize: whether those are normalised; this does not change what is drawn.
      nucleus_p: in (0, 1]; draw from the most probable tokens before which less than this has been collected (Holtzman
        et al. 2020, arXiv 1904.09751), and from all that are as probable as the last of those.
      epsilon: in [0, 1); do not draw tokens of a lower probability.
      eps_fail_safe: keep the best token if all are of a lower one. If not, all are drawn alike then.
      carry: a tree of arrays, whose shapes and dtypes stay the same.
      max_lens: i32[n], how long each row may be, EOS included, at most T. None: T.
      return_logits: that keeps f32[n, T, V].
      compat: "lingvo": rows that have ended go on until all of them draw EOS in the same step; nucleus_p may be 0, and
        draws from all tokens alike.
      implementation: "auto" or "xla".

    Returns:
      `SampleSequencesResult`.

    Raises:
      ValueError: a shape, a dtype or an argument is wrong; the message names it.
    """
    check_implementation("sample_sequences", implementation)
    check_steps(max_steps)
    check_token("eos_id", eos_id)
    if eoc_id == eos_id:
        raise ValueError(f"eoc_id must differ from eos_id (both are {eos_id}); -1: there is no epsilon")
    filters = SamplingFilters(
        temperature=temperature,
        top_k=top_k,
        top_k_renormalize=top_k_renormalize,
        nucleus_p=nucleus_p,
        epsilon=epsilon,
        eps_fail_safe=eps_fail_safe,
        compat=compat,
    )
    start_n = integers("start_ids", start_ids, (None,))
    n, T = len(start_n), max_steps
    max_len_n = jnp.full(n, T, jnp.int32) if max_lens is None else integers("max_lens", max_lens, (n,))
    carry = jax.tree.map(jnp.asarray, carry)
    scored = checked("logits_fn", logits_fn, "is_last_chunk" if eoc_id >= 0 else "")
    V = jax.eval_shape(scored, start_n, jnp.zeros((), jnp.int32), carry).scores_nxV.shape[1]
    if eos_id >= V or eoc_id >= V:
        raise ValueError(f"eos_id and eoc_id must be < V = {V} (got {eos_id} and {eoc_id})")

    def goes_on(c: _Carry) -> jax.Array:
        return (c.step < T) & ~c.all_ended

    def advance(c: _Carry) -> _Carry:
        t = c.step
        logits_nxV, carry, is_last_n = scored(c.id_n, t, c.carry)
        x_nxM, tokens_nxM = filters.apply(logits_nxV)
        id_n = categorical(jax.random.fold_in(rng, t), x_nxM)
        if tokens_nxM is not None:
            id_n = jnp.take_along_axis(tokens_nxM, id_n[:, None], axis=1)[:, 0]
        if is_last_n is not None:
            id_n = jnp.where(is_last_n & (id_n == eoc_id), eos_id, id_n)
        kept_n = jnp.where(c.is_over_n, eos_id, id_n)
        score_n = jnp.take_along_axis(logits_nxV, kept_n[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits_nxV, axis=1)
        is_over_n = c.is_over_n | (kept_n == eos_id) | (t + 1 >= max_len_n)
        return _Carry(
            step=t + 1,
            id_n=id_n if compat == "lingvo" else kept_n,
            carry=carry,
            is_over_n=is_over_n,
            all_ended=jnp.all(id_n == eos_id if compat == "lingvo" else is_over_n),
            ids_Txn=c.ids_Txn.at[t].set(kept_n),
            is_padding_Txn=c.is_padding_Txn.at[t].set(c.is_over_n),
            score_Txn=c.score_Txn.at[t].set(jnp.where(c.is_over_n, 0.0, score_n)),
            logits_TxnxV=None if c.logits_TxnxV is None else c.logits_TxnxV.at[t].set(logits_nxV),
        )

    is_over_n = max_len_n < 1
    last = lax.while_loop(
        goes_on,
        advance,
        _Carry(
            step=jnp.zeros((), jnp.int32),
            id_n=start_n,
            carry=carry,
            is_over_n=is_over_n,
            all_ended=jnp.all(is_over_n),
            ids_Txn=jnp.full((T, n), eos_id, jnp.int32),
            is_padding_Txn=jnp.ones((T, n), bool),
            score_Txn=jnp.zeros((T, n), jnp.float32),
            logits_TxnxV=jnp.zeros((T, n, V), jnp.float32) if return_logits else None,
        ),
    )
    return SampleSequencesResult(
        ids=last.ids_Txn.T,
        paddings=last.is_padding_Txn.T.astype(jnp.float32),
        lens=jnp.sum(~last.is_padding_Txn, axis=0, dtype=jnp.int32),
        scores=jnp.sum(last.score_Txn, axis=0),
        token_scores=last.score_Txn.T,
        logits=None if last.logits_TxnxV is None else last.logits_TxnxV.transpose(1, 0, 2),
    )
