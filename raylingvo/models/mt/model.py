"""What translation needs of a network, and of its configuration."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Literal, NamedTuple, Protocol, get_args

import jax
from flax import nnx

from raylingvo.models.layers.softmax import Softmax
from raylingvo.models.task import Batch

# B pairs, S source positions, T target positions, D features; N = B * k slots of a search, k hyps for each source: slot
# i is hyp i // B of source i % B.


class Predicted(NamedTuple):
    """features: [B, T, D], from which the softmax predicts the labels. source_probs: f32[B, T, S], the attention."""

    features: jax.Array
    source_probs: jax.Array


class TranslationModule(Protocol):
    """A network that predicts the words of a target from those before, and from a source."""

    softmax: Softmax

    def __call__(self, batch: Batch, *, rng: jax.Array | None = None) -> Predicted:
        """All words of the targets at once, each from those of the reference before it. A key `rng` means training.

        batch: src_ids i32[B, S], src_paddings f32[B, S], tgt_ids i32[B, T], tgt_paddings f32[B, T]; of packed rows also
        src_segment_ids, src_segment_pos i32[B, S] and tgt_segment_ids, tgt_segment_pos i32[B, T].
        """
        ...

    def encode(self, batch: Batch) -> Any:
        """What steps need of the sources: a tree of arrays. batch: src_ids, src_paddings; not packed."""
        ...

    def init_cache(self, source: Any, num_hyps: int, max_steps: int) -> Any:
        """The cache before the first step of a search: k = num_hyps for each source, at most max_steps."""
        ...

    @property
    def cache_axes(self) -> Any:
        """Which axis of the cache's arrays counts slots: see `ops.beam_search`."""
        ...

    def step(self, ids_N: jax.Array, source: Any, cache: Any) -> tuple[jax.Array, jax.Array, Any]:
        """The next word of each hyp, given its newest: features [N, D], attention f32[N, S], the cache with this step.

        The same, to rounding, as what `__call__` has at that position.
        """
        ...


ComputeDtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslationModel(abc.ABC):
    """Configuration of a `TranslationModule`.

    compute_dtype: of activations and of products. Weights, and the statistics of norms and softmaxes, are float32.
    """

    source_vocab_size: int
    target_vocab_size: int
    compute_dtype: ComputeDtype = "float32"

    def __post_init__(self) -> None:
        for name in ("source_vocab_size", "target_vocab_size"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be >= 2 (got {getattr(self, name)})")
        if self.compute_dtype not in get_args(ComputeDtype):
            raise ValueError(f"compute_dtype must be one of {get_args(ComputeDtype)} (got {self.compute_dtype!r})")

    @abc.abstractmethod
    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The initialised module, a `TranslationModule`."""
