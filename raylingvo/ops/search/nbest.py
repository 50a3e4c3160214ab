"""The best hyps of several searches (Lingvo: MergeBeamSearchOutputs, core/beam_search_helper.py)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from raylingvo.ops._native import Implementation
from raylingvo.ops.search._beam_search_attributes import Compat, TopKHyps, check_compat
from raylingvo.ops.search._search_arguments import check_implementation, floats, integers
from raylingvo.ops.search._top_k_hyps_xla import ranked

# b beams, k hyps of one search, K of all of them, m in the result, T steps.


def merge_beam_search_outputs(
    max_hyps: int, *outs: Any, compat: Compat = None, implementation: Implementation = "auto"
) -> TopKHyps:
    """The best hyps of each beam among those of several searches: of models, of directions, of start tokens.

    Equal hyps are not merged. Equal scores: that of the earlier search first, then the earlier hyp. A
    score that is NaN ranks last, with -inf.

    Args:
      max_hyps: m, how many hyps, from 1 to as many as there are.
      outs: results of `beam_search`, `top_k_hyps` or `flat_beam_search`: anything whose first three items are ids
        i32[b, k, T], lens i32[b, k] and scores f32[b, k]. b is the same for all, k and T may differ.
      compat: "lingvo": where there is no hyp, the score is -1e6.
      implementation: "auto" or "xla".

    Returns:
      ids i32[b, m, T] with the longest T, 0 behind a hyp's end; lens i32[b, m], 0 where there is no hyp; scores
      f32[b, m], best first, -inf where there is no hyp.

    Raises:
      ValueError: max_hyps or a shape is wrong; the message names it.
    """
    check_compat(compat)
    check_implementation("merge_beam_search_outputs", implementation)
    if not outs:
        raise ValueError("outs must be one result or more (got none)")
    ids_of, lens_of, scores_of = [], [], []
    for i, out in enumerate(outs):
        ids_bxkxT = integers(f"outs[{i}].ids", out[0], (None, None, None))
        b = len(ids_of[0]) if ids_of else len(ids_bxkxT)
        if len(ids_bxkxT) != b:
            raise ValueError(f"outs[{i}] must have {b} beams like outs[0] (got {len(ids_bxkxT)})")
        ids_of.append(ids_bxkxT)
        lens_of.append(integers(f"outs[{i}].lens", out[1], ids_bxkxT.shape[:2]))
        scores_of.append(floats(f"outs[{i}].scores", out[2], ids_bxkxT.shape[:2]))
    T = max(ids.shape[2] for ids in ids_of)
    ids_bxKxT = jnp.concatenate([jnp.pad(ids, ((0, 0), (0, 0), (0, T - ids.shape[2]))) for ids in ids_of], axis=1)
    len_bxK, score_bxK = jnp.concatenate(lens_of, axis=1), jnp.concatenate(scores_of, axis=1)
    if not 1 <= max_hyps <= len_bxK.shape[1]:
        raise ValueError(f"max_hyps must be from 1 to {len_bxK.shape[1]}, the hyps that there are (got {max_hyps})")
    missing = -1e6 if compat == "lingvo" else -jnp.inf
    _, chosen_bxm = lax.top_k(jnp.where(len_bxK > 0, ranked(score_bxK), missing), max_hyps)
    score_bxK = jnp.where(len_bxK > 0, score_bxK, missing)
    return TopKHyps(
        ids=jnp.take_along_axis(ids_bxKxT, chosen_bxm[..., None], axis=1),
        lens=jnp.take_along_axis(len_bxK, chosen_bxm, axis=1),
        scores=jnp.take_along_axis(score_bxK, chosen_bxm, axis=1),
    )
