"""Greedy search, the whole loop on the device (Lingvo: GreedySearchHelper, core/beam_search_helper.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from raylingvo.ops._native import Implementation
from raylingvo.ops.search._search_arguments import (
    check_implementation,
    check_steps,
    check_token,
    checked,
    integers,
    raise_if_any,
)
from raylingvo.ops.search._top_k_logits import top_k_by_blocks

# n rows, T steps, V vocabulary.


class GreedySearchResult(NamedTuple):
    """ids: i32[n, T]. lens: i32[n], how many of them there are, EOS included. done: bool[n], whether EOS is among them.

    Behind a row's end ids are not masked: what the model says after EOS as long as other rows go on, then 0.
    """

    ids: jax.Array
    lens: jax.Array
    done: jax.Array


class _Carry(NamedTuple):
    step: jax.Array
    id_n: jax.Array
    carry: Any
    ids_Txn: jax.Array
    len_n: jax.Array
    done_n: jax.Array
    is_nan_n: jax.Array


def greedy_search(
    log_prob_fn: Callable[..., Any],
    start_ids: Any,
    *,
    eos_id: int,
    max_steps: int,
    carry: Any = None,
    max_lens: Any = None,
    implementation: Implementation = "auto",
) -> GreedySearchResult:
    """The most probable next token, of equal ones the lowest, until each row has EOS or is as long as it may be.

    One `lax.while_loop` that ends with the last row. Call it inside jit: outside, log_prob_fn is compiled anew by every
    call.

    Args:
      log_prob_fn: log_prob_fn(prev_ids i32[n], step i32[], carry) returns log-probabilities [n, V] of the next token
        (or logits: only their order matters), or (those, new carry). NaN is never chosen.
      start_ids: i32[n], what it gets first.
      eos_id: in [0, V).
      max_steps: T, > 0.
      carry: a tree of arrays, whose shapes and dtypes stay the same: a cache, for example. It is never reordered.
      max_lens: i32[n], how long each row may be, EOS included, at most T. None: T.
      implementation: "auto" or "xla".

    Returns:
      `GreedySearchResult`.

    Raises:
      ValueError: a shape, a dtype or an argument is wrong; the message names it.
      jax.errors.JaxRuntimeError: all scores of a row that has not ended are NaN. Inside jit, XLA cannot raise: that row
        gets length 0.
    """
    check_implementation("greedy_search", implementation)
    check_steps(max_steps)
    check_token("eos_id", eos_id)
    start_n = integers("start_ids", start_ids, (None,))
    n, T = len(start_n), max_steps
    max_len_n = jnp.full(n, T, jnp.int32) if max_lens is None else integers("max_lens", max_lens, (n,))
    scored = checked("log_prob_fn", log_prob_fn)

    def goes_on(c: _Carry) -> jax.Array:
        return (c.step < T) & jnp.any(_is_open(c, max_len_n))

    def advance(c: _Carry) -> _Carry:
        score_nxV, carry, _ = scored(c.id_n, c.step, c.carry)
        if eos_id >= score_nxV.shape[1]:
            raise ValueError(f"eos_id must be < V = {score_nxV.shape[1]} (got {eos_id})")
        _, id_nx1 = top_k_by_blocks(score_nxV, 1)
        id_n = id_nx1[:, 0]
        is_open_n = _is_open(c, max_len_n)
        return _Carry(
            step=c.step + 1,
            id_n=id_n,
            carry=carry,
            ids_Txn=c.ids_Txn.at[c.step].set(id_n),
            len_n=c.len_n + is_open_n,
            done_n=c.done_n | (is_open_n & (id_n == eos_id)),
            is_nan_n=c.is_nan_n | (is_open_n & jnp.all(jnp.isnan(score_nxV), axis=1)),
        )

    last = lax.while_loop(
        goes_on,
        advance,
        _Carry(
            step=jnp.zeros((), jnp.int32),
            id_n=start_n,
            carry=jax.tree.map(jnp.asarray, carry),
            ids_Txn=jnp.zeros((T, n), jnp.int32),
            len_n=jnp.zeros(n, jnp.int32),
            done_n=jnp.zeros(n, bool),
            is_nan_n=jnp.zeros(n, bool),
        ),
    )
    raise_if_any(last.is_nan_n)
    return GreedySearchResult(
        ids=last.ids_Txn.T, lens=jnp.where(last.is_nan_n, 0, last.len_n), done=last.done_n & ~last.is_nan_n
    )


def _is_open(c: _Carry, max_len_n: jax.Array) -> jax.Array:
    return ~c.done_n & ~c.is_nan_n & (c.step < max_len_n)
