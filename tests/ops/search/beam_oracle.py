"""Beam search as its rules read, slot by slot in NumPy, to compare the ops with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from raylingvo.ops import _native
from raylingvo.ops.search.beam_search_state import BeamSearchState


def implementations() -> list[Any]:
    """For parametrize: both of them; cpp is skipped where it is not there."""
    why = _native.why_unavailable()
    return ["xla", pytest.param("cpp", marks=pytest.mark.skipif(bool(why), reason=why or "-"))]


def path(state: BeamSearchState, slot: int, row: int) -> list[int]:
    """The slots of a hyp in rows 0..row, if it is in `slot` after step `row`."""
    slots = []
    for r in range(row, -1, -1):
        slots.append(slot)
        slot = int(state.prev_hyps[r, slot])
    return slots[::-1]


def tokens(state: BeamSearchState, slot: int, row: int) -> list[int]:
    return [int(state.hyps[r, s]) for r, s in enumerate(path(state, slot, row))]


def step(
    log_probs,
    atten_probs,
    state,
    t,
    is_last_chunk,
    *,
    eos_id,
    num_hyps_per_beam,
    beam_size=3.0,
    eoc_id=-1,
    valid_eos_max_logit_delta=5.0,
    local_eos_threshold=-100.0,
    merge_paths=False,
    allow_empty_terminated_hyp=True,
    ensure_full_beam=False,
    force_eos_in_last_step=False,
    force_eos_in_top_k=False,
    force_last_chunk_eoc_in_top_k=False,
    beam_independence=False,
    last_steps=None,
) -> BeamSearchState:
    old, new = state, BeamSearchState(*(np.array(x) for x in state))
    k, T, N = num_hyps_per_beam, *state.hyps.shape
    b = N // k
    num_entries = k + (2 if eoc_id >= 0 else 1)
    for beam in range(b):
        is_forced = force_eos_in_last_step and t == (last_steps[beam] if last_steps else T - 1)
        if beam_independence and old.beam_done[beam]:
            continue
        groups = {}  # what spells the same, or is the same
        for slot in range(beam, N, b):
            new.done_hyps[t, slot], new.eos_ids[t, slot] = False, 0
            new.eos_scores[t, slot] = new.eos_global_scores[t, slot] = 0
            new.eos_atten_probs[t, slot] = 0
            if (t == 0 and slot != beam) or old.cumulative_scores[slot] <= -1e30:
                continue
            labels = [token for token in tokens(old, slot, t - 1) if token != eoc_id]
            local = np.asarray(log_probs[slot], np.float32)
            with np.errstate(all="ignore"):
                g = old.cumulative_scores[slot] + local
            if np.isnan(g).all():
                raise FloatingPointError("No entries in TopK")
            can_be = [v for v in range(len(g)) if g[v] > -np.inf]
            entries = sorted(can_be, key=lambda v: (-g[v], v))[:num_entries]
            if (force_eos_in_top_k or is_forced) and eos_id in can_be and eos_id not in entries:
                entries[-1] = eos_id
            is_last = eoc_id >= 0 and is_last_chunk[slot]
            if force_last_chunk_eoc_in_top_k and is_last and eoc_id in can_be and eoc_id not in entries:
                entries[-2] = eoc_id
            end = eos_id if is_forced and eos_id in can_be else None
            for v in entries:
                passes = g[v] > g[entries[0]] - np.float32(valid_eos_max_logit_delta)
                passes = passes and local[v] > np.float32(local_eos_threshold)
                if v == eos_id:
                    end = eos_id if passes or is_forced else end
                elif v == eoc_id and is_last:
                    end = eoc_id if passes and (labels or allow_empty_terminated_hyp) else end
                else:
                    spelled = tuple(labels + ([v] if v != eoc_id else []))
                    groups.setdefault(spelled if merge_paths else (slot, v), []).append((-g[v], v, slot, local[v]))
            if end is not None:
                new.done_hyps[t, slot], new.eos_ids[t, slot] = True, end
                new.eos_scores[t, slot], new.eos_global_scores[t, slot] = local[end], g[end]
                new.eos_atten_probs[t, slot] = atten_probs[slot]
                new.best_scores[beam] = max(new.best_scores[beam], g[end])
        candidates = []
        for group in groups.values():
            falling, *rest = min(group)
            candidates.append((falling - math.log(sum(math.exp(falling - other[0]) for other in group)), *rest))
        chosen = sorted(candidates)[:k]
        chosen += [(1e30, 0, beam, 0.0)] * (k - len(chosen))
        for hyp, (falling, token, parent, local) in enumerate(chosen):
            slot = hyp * b + beam
            new.cumulative_scores[slot], new.scores[t, slot] = -falling, local
            new.hyps[t, slot], new.prev_hyps[t, slot] = token, parent
            new.atten_probs[t, slot] = atten_probs[parent]
    for beam in range(b):
        is_low = new.cumulative_scores[beam::b] <= new.best_scores[beam] - np.float32(beam_size)
        is_full = not ensure_full_beam or new.done_hyps[: t + 1, beam::b].sum() >= k
        new.beam_done[beam] |= is_full and is_low.all()
    return new._replace(all_done=new.beam_done.all())


def top_k(state, k, length_normalization, coverage_penalty, ratio, src_lengths):
    """For each beam, (score, ids) of its k best ended hyps."""
    b, S = len(state.best_scores), state.atten_probs.shape[-1]
    found = [[] for _ in range(b)]
    for t, slot in np.argwhere(state.done_hyps).tolist():
        beam = slot % b
        atten = state.eos_atten_probs[t, slot].astype(np.float64)
        for r, s in enumerate(path(state, slot, t - 1)):
            atten = atten + state.atten_probs[r, s]
        atten = np.append(atten, np.zeros(max(0, src_lengths[beam] - S)))[: src_lengths[beam]]
        covered = np.log(np.clip(atten / ratio, 0.001, 0.5)).sum()
        score = state.eos_global_scores[t, slot] / (t + 6) ** length_normalization * 5**length_normalization
        ids = [*tokens(state, slot, t - 1), int(state.eos_ids[t, slot])]
        found[beam].append((score + ratio * coverage_penalty * covered, ids))
    return [sorted(hyps, key=lambda hyp: (-hyp[0], len(hyp[1])))[:k] for hyps in found]
