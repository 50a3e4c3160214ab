"""How translations are searched for: by beam, greedily, or drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from raylingvo.models.mt.model import TranslationModule
from raylingvo.models.task import Batch
from raylingvo.ops import PrefixState, PrefixTrie, beam_search, constrained_scores, sample_sequences
from raylingvo.ops.search.cache import reorder

# B sources of S positions, k hyps of each, T steps, P tokens of a prefix.

Method = Literal["beam", "greedy", "sample"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a source is translated.

    The defaults are those of Lingvo's WMT Transformers, but for max_steps_per_token and max_source_tokens, which it has
    not.

    method: "beam" for the hyps of the best scores; "greedy" for the likeliest next token, one hyp; "sample" draws hyps.
    num_hyps_per_beam: hyps that are kept, or drawn. num_best: of those, in outputs; 0: all.
    max_steps: tokens of a hyp at most, its end included (Lingvo: target_seq_len). max_steps_per_token: > 0: and at most
      10 more than so many for each token of the source, which bounds memory and the length of degenerate hyps.
    max_source_tokens: of a line of text; longer ones are cut, and say so.
    forced_prefix: lines of text are `SOURCE<tab>START`, and translations begin with START. (Text after the start is
      split into tokens of its own.)
    length_normalization, coverage_penalty, beam_size, valid_eos_max_logit_delta: of "beam" only, see `ops.beam_search`.
    temperature, top_k, nucleus_p, seed: of "sample" only, see `ops.sample_sequences`; draws depend on the other sources
      of a batch.
    """

    method: Method = "beam"
    num_hyps_per_beam: int = 8
    num_best: int = 0
    max_steps: int = 300
    max_steps_per_token: float = 2.0
    max_source_tokens: int = 200
    forced_prefix: bool = False
    length_normalization: float = 0.5
    coverage_penalty: float = 0.0
    beam_size: float = 3.0
    valid_eos_max_logit_delta: float = 5.0
    temperature: float = 1.0
    top_k: int = 0
    nucleus_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"method must be one of {', '.join(get_args(Method))} (got {self.method!r})")
        for name in ("num_hyps_per_beam", "max_steps", "max_source_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")
        at_least_0 = ("num_best", "max_steps_per_token", "length_normalization", "coverage_penalty", "beam_size")
        for name in (*at_least_0, "valid_eos_max_logit_delta", "top_k", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0 (got {getattr(self, name)})")
        if self.num_best > self.num_hyps_per_beam:
            raise ValueError(f"num_best must be <= num_hyps_per_beam, {self.num_hyps_per_beam} (got {self.num_best})")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0; method 'greedy' takes the likeliest (got {self.temperature})")
        if not 0 < self.nucleus_p <= 1:
            raise ValueError(f"nucleus_p must be in (0, 1] (got {self.nucleus_p})")

    def steps(self, source_length: int) -> int:
        """The most tokens of a hyp, for a source of so many."""
        if not self.max_steps_per_token:
            return self.max_steps
        return min(self.max_steps, 10 + int(self.max_steps_per_token * source_length))


class Hyps(NamedTuple):
    """The hyps of each source, best first.

    ids: i32[B, k, T], the end included, 0 behind it. lens: i32[B, k]; 0: there is none. scores: f32[B, k], of the beam
    normalised for length and coverage, else the log-probability; -inf where there is none.
    """

    ids: jax.Array
    lens: jax.Array
    scores: jax.Array


def search(model: TranslationModule, batch: Batch, decoding: Decoding, *, sos_id: int, eos_id: int) -> Hyps:
    """Translates a batch: src_ids i32[B, S], src_paddings f32[B, S]; perhaps prefix_ids i32[B, P], prefix_lens i32[B].

    Call it inside jit.
    """
    steps = _Steps.create(model, batch, decoding)
    return _beam(steps, sos_id, eos_id) if decoding.method == "beam" else _word_by_word(steps, sos_id, eos_id)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Steps:
    """A batch of sources, ready for the steps of a search."""

    model: TranslationModule
    batch: Batch
    decoding: Decoding
    source: Any
    logits_of: Callable[[jax.Array], jax.Array]
    num_hyps: int  # k
    trie: PrefixTrie | None

    @classmethod
    def create(cls, model: TranslationModule, batch: Batch, decoding: Decoding) -> _Steps:
        return cls(
            model=model,
            batch=batch,
            decoding=decoding,
            source=model.encode(batch),
            logits_of=model.softmax.laid_out(),
            num_hyps=1 if decoding.method == "greedy" else decoding.num_hyps_per_beam,
            trie=PrefixTrie.of_arrays(batch["prefix_ids"], batch["prefix_lens"]) if "prefix_ids" in batch else None,
        )

    @property
    def max_steps(self) -> int:
        return self.decoding.steps(self.batch["src_ids"].shape[1])

    @property
    def source_length_B(self) -> jax.Array:
        return (1 - self.batch["src_paddings"]).sum(axis=1).astype(jnp.int32)

    @property
    def max_len_B(self) -> jax.Array:
        """How long each source's hyps may be, whatever else is in its batch."""
        how, T = self.decoding, self.max_steps
        if not how.max_steps_per_token:
            return jnp.full(len(self.batch["src_ids"]), T, jnp.int32)
        # As `Decoding.steps` has it, to the last bit.
        table = jnp.asarray([how.steps(length) for length in range(self.batch["src_ids"].shape[1] + 1)], jnp.int32)
        return table[self.source_length_B]

    @property
    def num_slots(self) -> int:
        return len(self.batch["src_ids"]) * self.num_hyps

    def start(self) -> tuple[Any, PrefixState | tuple[()]]:
        """The cache, and the state of the prefixes."""
        state = () if self.trie is None else PrefixState.create(self.trie, self.num_slots)
        return self.model.init_cache(self.source, self.num_hyps, self.max_steps), state

    def constrained(self, log_prob_NxV: jax.Array, ids_N: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """What leads away from the prefixes is out."""
        assert self.trie is not None
        return constrained_scores(log_prob_NxV, ids_N, state, self.trie)


def _beam(steps: _Steps, sos_id: int, eos_id: int) -> Hyps:
    how, (cache, state) = steps.decoding, steps.start()

    def step(ids_N: jax.Array, cache: Any) -> tuple[jax.Array, jax.Array | None, Any]:
        features_NxD, probs_NxS, cache = steps.model.step(ids_N, steps.source, cache)
        return steps.logits_of(features_NxD), probs_NxS if how.coverage_penalty else None, cache

    found = beam_search(
        step,
        cache,
        num_beams=len(steps.batch["src_ids"]),
        num_hyps_per_beam=steps.num_hyps,
        max_steps=steps.max_steps,
        eos_id=eos_id,
        start_ids=jnp.full(steps.num_slots, sos_id, jnp.int32),
        scores="logits",
        cache_axes=steps.model.cache_axes,
        transform=None if steps.trie is None else steps.constrained,
        transform_state=None if steps.trie is None else state,
        max_lens=steps.max_len_B,
        src_lengths=steps.source_length_B,
        length_normalization=how.length_normalization,
        coverage_penalty=how.coverage_penalty,
        beam_size=how.beam_size,
        valid_eos_max_logit_delta=how.valid_eos_max_logit_delta,
    )
    return Hyps(found.ids, found.lens, found.scores)


def _word_by_word(steps: _Steps, sos_id: int, eos_id: int) -> Hyps:
    """Draws hyps. Greedily, the likeliest next token is all that can be drawn: `greedy_search` has no scores."""

    def advance(ids_N: jax.Array, _: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
        cache, state = carry
        features_NxD, _, cache = steps.model.step(ids_N, steps.source, cache)
        score_NxV = steps.logits_of(features_NxD)
        if steps.trie is not None:
            score_NxV, state = steps.constrained(jax.nn.log_softmax(score_NxV), ids_N, state)
        # Each hyp stays in its slot.
        return score_NxV, (reorder(cache, jnp.arange(len(ids_N)), None), state)

    how, k, T = steps.decoding, steps.num_hyps, steps.max_steps
    greedy = how.method == "greedy"
    # Other batches draw other numbers: what is the same in all of them would show in every draw.
    ids_BxS = steps.batch["src_ids"].astype(jnp.uint32)
    place_BxS = jax.lax.broadcasted_iota(jnp.uint32, ids_BxS.shape, 1) * jnp.uint32(len(ids_BxS))
    place_BxS += jax.lax.broadcasted_iota(jnp.uint32, ids_BxS.shape, 0)
    number_of_batch = (ids_BxS * (place_BxS * jnp.uint32(2654435761) + jnp.uint32(1))).sum(dtype=jnp.uint32)
    drawn = sample_sequences(
        advance,
        jnp.full(steps.num_slots, sos_id, jnp.int32),
        jax.random.fold_in(jax.random.key(how.seed), number_of_batch),
        max_steps=T,
        eos_id=eos_id,
        temperature=1.0 if greedy else how.temperature,
        top_k=1 if greedy else how.top_k,
        nucleus_p=1.0 if greedy else how.nucleus_p,
        carry=steps.start(),
        max_lens=jnp.tile(steps.max_len_B, k),
    )
    score_Bxk, lens_Bxk = (x.reshape(k, -1).T for x in (drawn.scores, drawn.lens))
    ids_BxkxT = drawn.ids.reshape(k, -1, T).swapaxes(0, 1)
    best_Bxk = jnp.argsort(-score_Bxk, axis=1)
    score_Bxk, lens_Bxk = (jnp.take_along_axis(x, best_Bxk, axis=1) for x in (score_Bxk, lens_Bxk))
    ids_BxkxT = jnp.take_along_axis(ids_BxkxT, best_Bxk[..., None], axis=1)
    is_real_BxkxT = jnp.arange(T)[None, None] < lens_Bxk[..., None]
    return Hyps(jnp.where(is_real_BxkxT, ids_BxkxT, 0), lens_Bxk, score_Bxk)
