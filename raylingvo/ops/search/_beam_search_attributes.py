"""The attributes of the beam search ops, checked, and the rules that their implementations share.

One step, for each beam that is not skipped (skipped: beam_independence and beam_done; its state stays as it was):

- A slot is expanded if t > 0 or it is hyp 0 and, unless compat="lingvo", it is not empty (empty: cumulative score
  <= EMPTY_SCORE).
- g = cumulative score + local score, in float32. An entry is admitted unless g is NaN or -inf (compat="lingvo" admits
  the -inf of a row's first token that is not NaN). The best C = k + 1 (k + 2 with eoc) are kept.
- In an expanded row every g is NaN: the C++ op fails with NO_ENTRIES; in XLA the beam's best and cumulative scores
  become NaN.
- EOS and EOC are forced into the entries only if their g could be admitted. With force_eos_in_last_step the
  last step of a beam forces EOS for every expanded slot; compat="lingvo" only if Lingvo's buffer would have let it in.
- Slots that get no candidate: token 0, local score 0, parent hyp 0 of their own beam, cumulative score EMPTY_SCORE;
  compat="lingvo": parent slot 0, cumulative score 0.
- Row t of done_hyps and eos_* is written whole: False and 0 where a slot did not end.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax

Compat = Literal["lingvo"] | None

EMPTY_SCORE = -1e30  # the cumulative score of a slot without a hyp

NO_ENTRIES = "No entries in TopK. This typically happens if the model is producing NaNs in the output."


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepAttributes:
    """How `beam_search_step` expands, merges, ends and prunes hyps; see there."""

    eos_id: int
    num_hyps_per_beam: int
    beam_size: float = 3.0
    eoc_id: int = -1
    valid_eos_max_logit_delta: float = 5.0
    local_eos_threshold: float = -100.0
    merge_paths: bool = False
    allow_empty_terminated_hyp: bool = True
    ensure_full_beam: bool = False
    force_eos_in_last_step: bool = False
    force_eos_in_top_k: bool = False
    force_last_chunk_eoc_in_top_k: bool = False
    merged_topk_buffer_size_factor: int = 2
    beam_independence: bool = False
    compat: Compat = None

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> StepAttributes:
        """Those among the arguments of an op: its locals() before there are others."""
        return cls(**{field.name: arguments[field.name] for field in dataclasses.fields(cls)})

    def __post_init__(self):
        for name in ("beam_size", "valid_eos_max_logit_delta", "local_eos_threshold"):
            object.__setattr__(self, name, float(getattr(self, name)))
        check_compat(self.compat)
        if self.num_hyps_per_beam < 1:
            raise ValueError(f"num_hyps_per_beam must be > 0 (got {self.num_hyps_per_beam})")
        if self.eos_id < 0:
            raise ValueError(f"eos_id must be >= 0 (got {self.eos_id})")
        if self.eoc_id == self.eos_id:
            raise ValueError(f"eoc_id must differ from eos_id (both are {self.eos_id}); -1: there is no epsilon")
        if self.merge_paths and self.eoc_id < 0:
            raise ValueError(f"merge_paths needs the epsilon that it merges over: set eoc_id (got {self.eoc_id})")
        if self.merged_topk_buffer_size_factor < 2:
            raise ValueError(f"merged_topk_buffer_size_factor must be > 1 (got {self.merged_topk_buffer_size_factor})")
        for name in ("beam_size", "valid_eos_max_logit_delta", "local_eos_threshold"):
            if math.isnan(getattr(self, name)):
                raise ValueError(f"{name} must be a number (got nan)")

    @property
    def num_entries(self) -> int:
        """C, how many continuations of a slot are looked at."""
        return self.num_hyps_per_beam + (2 if self.eoc_id >= 0 else 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopKAttributes:
    """How `top_k_hyps` scores the hyps that ended; see there. The signature of both implementations is
    `top_k(state, src_lengths i32[b], attributes) -> TopKHyps(ids i32[b, k, T], lens i32[b, k], scores f32[b, k])`."""

    k: int
    length_normalization: float = 0.0
    coverage_penalty: float = 0.0
    target_seq_length_ratio: float = 1.0
    compat: Compat = None

    def __post_init__(self):
        for name in ("length_normalization", "coverage_penalty", "target_seq_length_ratio"):
            object.__setattr__(self, name, float(getattr(self, name)))
        check_compat(self.compat)
        if self.k < 1:
            raise ValueError(f"k must be > 0 (got {self.k})")
        for name in ("length_normalization", "coverage_penalty"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0 (got {getattr(self, name)})")
        if not self.target_seq_length_ratio > 0:
            raise ValueError(f"target_seq_length_ratio must be > 0 (got {self.target_seq_length_ratio})")


class TopKHyps(NamedTuple):
    """The n-best of each beam, best first.

    ids: i32[b, k, T], the terminal symbol included, 0 behind it. lens: i32[b, k], with it; 0 where there is no hyp.
    scores: f32[b, k], normalized; -inf where there is no hyp.
    """

    ids: jax.Array
    lens: jax.Array
    scores: jax.Array


def check_compat(compat: Compat) -> None:
    if compat not in (None, "lingvo"):
        raise ValueError(f"compat must be None or 'lingvo' (got {compat!r})")
