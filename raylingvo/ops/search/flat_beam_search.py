"""Flat beam search: hyps are paths in one buffer of tokens, and no cache is ever reordered (Lingvo:
core/flat_beam_search_helper.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from raylingvo.ops._native import Implementation
from raylingvo.ops.search._beam_search_attributes import Compat, check_compat
from raylingvo.ops.search._flat_beam_search_loop import FlatSearch, Prefix
from raylingvo.ops.search._search_arguments import (
    check_implementation,
    check_steps,
    check_token,
    integers,
    raise_if_any,
)

# b examples, k lanes, T rows of the buffer, its k*T places, V vocabulary, m hyps of the result, W width of the prefix,
# L = T + W (T without a given prefix).


class FlatBeamSearchResult(NamedTuple):
    """The m best hyps of each example, best first.

    ids: i32[b, m, L], the prefix (or BOS) and EOS included, 0 behind it. lens: i32[b, m], with both; 0 where there is
    no hyp. scores: f32[b, m], normalised; -inf where there is no hyp. token_scores: f32[b, m, L], the log-probability
    of each token, 0 in the prefix. dec_state: what the callback returned last. num_steps: i32[], how many rows of the
    buffer have been filled.
    """

    ids: jax.Array
    lens: jax.Array
    scores: jax.Array
    token_scores: jax.Array
    dec_state: Any
    num_steps: jax.Array


def flat_beam_search(
    batch_size: int,
    beam_size: int,
    max_steps: int,
    dec_callback: Callable[..., tuple[Any, Any]],
    dec_state: Any,
    *,
    bos_id: int = 1,
    eos_id: int = 2,
    length_norm_alpha: float = 0.8,
    beam_gap: float | None = 3.0,
    prefix: Any = None,
    prefix_len: Any = None,
    ext_size: int = 0,
    nbest_size: int | None = None,
    max_lens: Any = None,
    compat: Compat = None,
    implementation: Implementation = "auto",
) -> FlatBeamSearchResult:
    """The best hyps of each example, by a decoder whose attention selects, with a mask, the tokens of each hyp.

    All tokens of an example share a buffer of T rows of k places, and so do the keys and values of its decoder. Step t
    fills row t with one token for each of k lanes. A hyp is a place and those that lead to it. All lanes are hyps if
    they end now, with EOS, and scored so: sum of log-probabilities / ((n + 5) / 5) ** length_norm_alpha, where n counts
    generated tokens, EOS and prefix left out. Of each lane the k best tokens go on: EOS is none of them, though it
    takes a place. Together with ext_size extensions that were not good enough before, the k best are the next lanes, so
    hyps of different lengths compete and may come back.

    dec_callback(ids i32[b, q], segment_ids i32[b, q], positions i32[b, q], mask f32[b, q, k*T], dec_state, t i32[])
    returns (log-probabilities [b, q, V], dec_state). q tokens go to places t*k .. t*k + q - 1, and attend to those
    where the mask is 1, their own included. q = k, but in a first call for a given prefix q = W and t = 0: that fills
    the state with all of the prefix but its last token, which lies in the last columns of places 0 .. W - 1. Its
    result is not looked at. Segment 0 is padding.

    One `lax.while_loop`. Call it inside jit: outside, the callback is compiled anew by every call. Lanes keep their
    masks as bits and the buffer keeps parents, not masks, so a step costs O(k*T) and ids are read off at the end.

    Args:
      batch_size: b. beam_size: k. max_steps: T, > W / k. Without a given prefix row 0 is that of BOS and stays empty:
        T - 1 steps.
      dec_callback: see above; its log-probabilities are finite: mask with -1e30. NaN is never chosen.
      dec_state: a tree of arrays, whose shapes and dtypes stay the same.
      bos_id: what a hyp starts with if there is no prefix. eos_id: in [0, V).
      length_norm_alpha: >= 0.
      beam_gap: an example stops when the worst of its m best hyps, unnormalised and without EOS, is so much better than
        its best lane. None: never. (Lingvo waits until that is so for all examples at once; here what an example gets
        does not depend on the others.)
      prefix: i32[b, W], right-aligned; W is a multiple of k. prefix_len: i32[b], from 1 to W; None: W.
      ext_size: how many extensions are kept.
      nbest_size: m; None: k.
      max_lens: i32[b], how many tokens may be generated, EOS included. None: as many as there are steps.
      compat: "lingvo": beam_gap never stops (Lingvo compares with the first lanes, not the newest); there are k first
        lanes that differ by 1e5, and where there is no hyp it has length 1 and score -1e9.
      implementation: "auto" or "xla".

    Returns:
      `FlatBeamSearchResult`.

    Raises:
      ValueError: a shape, a dtype or an argument is wrong; the message names it.
      jax.errors.JaxRuntimeError: all log-probabilities of a lane are NaN. Inside jit, XLA cannot raise: the scores of
        that example are NaN.
    """
    check_implementation("flat_beam_search", implementation)
    check_compat(compat)
    check_steps(max_steps)
    check_token("bos_id", bos_id)
    check_token("eos_id", eos_id)
    b, k = batch_size, beam_size
    m = beam_size if nbest_size is None else nbest_size
    if min(b, k, m) < 1 or ext_size < 0:
        raise ValueError(
            "batch_size, beam_size and nbest_size must be > 0 and ext_size >= 0 "
            f"(got {batch_size}, {beam_size}, {nbest_size} and {ext_size})"
        )
    if not length_norm_alpha >= 0:
        raise ValueError(f"length_norm_alpha must be >= 0 (got {length_norm_alpha})")
    search = FlatSearch(
        batch_size=b,
        num_lanes=k,
        num_rows=max_steps,
        callback=dec_callback,
        prefix=_prefix(prefix, prefix_len, b, k, max_steps, bos_id),
        eos_id=eos_id,
        length_norm_alpha=float(length_norm_alpha),
        beam_gap=beam_gap,
        ext_size=ext_size,
        nbest_size=m,
        max_len_b=None if max_lens is None else integers("max_lens", max_lens, (b,)),
        compat=compat,
    )
    last = search.run(dec_state)
    raise_if_any(last.is_nan_b)
    return FlatBeamSearchResult(*search.read(last), dec_state=last.dec_state, num_steps=last.t)


def _prefix(prefix: Any, prefix_len: Any, b: int, k: int, T: int, bos_id: int) -> Prefix:
    if prefix is None:
        if prefix_len is not None:
            raise ValueError(f"prefix_len must be None without a prefix (got {prefix_len})")
        ids_bxk = np.zeros((b, k), np.int32)
        ids_bxk[:, -1] = bos_id
        if T < 2:
            raise ValueError(f"max_steps must be > 1 (got {T}): the first is that of BOS")
        return Prefix(integers("prefix", ids_bxk, (b, k)), integers("prefix_len", np.ones(b, np.int32), (b,)), False)
    ids_bxW = integers("prefix", prefix, (b, None))
    W = ids_bxW.shape[1]
    if not 0 < W < k * T or W % k:
        raise ValueError(f"prefix must be a multiple of beam_size = {k} wide, below {k} * max_steps (got {W})")
    lens = np.full(b, W, np.int32) if prefix_len is None else prefix_len
    if not isinstance(lens, Tracer) and not ((np.asarray(lens) >= 1) & (np.asarray(lens) <= W)).all():
        raise ValueError(f"prefix_len must be in [1, W = {W}] (got {np.asarray(lens).tolist()})")
    return Prefix(ids_bxW, integers("prefix_len", lens, (b,)), True)
