"""Beam decoding of translation: its speed, the search's share of it, a decoder without a cache, and CTranslate2.

    python benchmarks/translation_decoding.py [--models Base Small] [--hyps 4 8] [--rounds 5] [--slow-rounds 1]

`mt.wmt14_en_de.WmtEnDeTransformerBase` and `..Small` with random weights, 16 sources of 40 tokens in a batch as
`decode --input` makes it (48 positions), 40 steps: the end of a sentence is never among the best tokens, and no beam
stops early. "registered" is the experiment's own Transformer. All else is of the one that CTranslate2 has too: the
input of attention, not its norm, is what is added to, a norm ends the stacks, and queries have no scale of their own.
Everything runs in this process, in turns. Prints one JSON line with, for each model and k, medians over rounds of
ratios taken within a round:

target_tokens_per_second: sentences * steps / seconds, the encoder's included.
bookkeeping_share: what `Translation.decode` takes beyond its own loop with the model alone, its log-softmax included
(tokens are fixed, nothing is chosen, ranked or reordered), as a share of decode; goal <= 0.05.
bookkeeping_share_logits: likewise beyond the model without the log-softmax, which is the search's work here.
alone_share_logits: seconds of the search over logits that are there already, over those of decode: that share measured
another way, which what else the machine does disturbs less.
prefix_recompute_ratio: seconds of a decoder without a cache, that calls the module for all of the target at every step
(filled up to 40 positions; the source is encoded once), over ours; goal >= 4. prefix_recompute_lean_ratio: of one that
also keeps the source's keys and values, and computes but the next multiple of 10 positions. Of `--slow-rounds` rounds.
ctranslate2_ratio: our target tokens/s over CTranslate2's in float32 with the same weights, where it is installed (`pip
install ctranslate2`), else null; goal >= 1. ctranslate2_int8_ratio: over those in int8.
identical_hypotheses: the share of sentences with the same best hyp in both, of 39 words (ours then end, theirs not: the
end has no part in its choice). recomputed_identical: likewise ours and the decoders without a cache.
score_difference: the largest between CTranslate2's score of a hyp and the sum of our teacher-forced log-probabilities.

Exit status 1 if best hyps differ whose log-probabilities differ by more than 1e-4, or score_difference is over 1e-2.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import _ctranslate2
import jax
import jax.numpy as jnp
import numpy as np
from _compare import keep_memory, median, report, timed_in_turn, without_zeros
from flax import nnx
from jax import lax

import raylingvo as rl
from raylingvo.models.layers.masks import padding_mask
from raylingvo.models.layers.positions import sinusoid
from raylingvo.models.mt.decoding import Decoding
from raylingvo.models.mt.transformer_model import TransformerModel, TransformerModule
from raylingvo.models.mt.translation import Translation
from raylingvo.ops import CacheIndex, beam_search
from raylingvo.training.state import Model, Weights

# B sources of S tokens, padded to P; k hyps of each, N = B*k slots (slot i is hyp i // B of source i % B); T steps; V
# words, D features.
B, S, P, T = 16, 40, 48, 40
_PREFIXES = (10, 20, 30, 40)
_TIE, _TOLERANCE = 1e-4, 1e-2
# Far above any sum of 40 log-probabilities.
_NO_LIMIT = 1e9
Batch = dict[str, Any]


class Subject:
    """A task with its weights, and the programs that are timed."""

    def __init__(self, name: str, k: int, *, registered: bool = False) -> None:
        task = rl.get(f"mt.wmt14_en_de.WmtEnDeTransformer{name}").task
        assert isinstance(task, Translation) and isinstance(task.model, TransformerModel)
        model = task.model
        if not registered:
            model = dataclasses.replace(model, normalized_residual=False, final_norm=True, query_scale="sqrt_dim")
        decoding = Decoding(
            num_hyps_per_beam=k,
            max_steps=T,
            max_steps_per_token=0.0,
            length_normalization=0.0,
            beam_size=_NO_LIMIT,
            valid_eos_max_logit_delta=_NO_LIMIT,
        )
        self.task, self.config, self.k = dataclasses.replace(task, model=model, decoding=decoding), model, k
        self.sos_id, self.eos_id = task.target_tokenizer.sos_id, task.target_tokenizer.eos_id
        self._model = Model(self.task)

    def init(self) -> Weights:
        """As the task draws them, but logits vary as much as a trained model's, and no array is 0. Alike for all k."""
        weights = jax.jit(lambda: Model.split(self.task.init(nnx.Rngs(0))))()
        params = without_zeros(weights.params)
        softmax = params["softmax"]
        params["softmax"] = {
            "kernel": (4 * softmax["kernel"]).at[self.eos_id].set(0.0),
            "bias": softmax["bias"].at[self.eos_id].set(-50.0),
        }
        return weights._replace(params=params)

    @functools.partial(jax.jit, static_argnums=0)
    def decode(self, weights: Weights, batch: Batch) -> dict[str, jax.Array]:
        """As users get it."""
        return self.task.decode(self._model.merge(weights), batch)

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def model_alone(self, weights: Weights, batch: Batch, normalised: bool) -> jax.Array:
        """The loop of the search without the search."""
        module = self._module(weights)
        source, logits_of = module.encode(batch), module.softmax.laid_out()

        def step(_: jax.Array, carry: Any) -> Any:
            ids_N, cache, _ = carry
            features_NxD, _, (layers, index) = module.step(ids_N, source, cache)
            score_NxV = logits_of(features_NxD)
            if normalised:
                score_NxV = jax.nn.log_softmax(score_NxV)
            # All scores are written, as they are for the search; and the next step waits for them.
            some_N = lax.optimization_barrier(score_NxV)[:, 0]
            return ids_N + jnp.isnan(some_N), (layers, CacheIndex(index.step + 1, index.slots)), some_N

        ids_N = jnp.full(B * self.k, self.sos_id)
        cache = module.init_cache(source, self.k, T)
        return lax.fori_loop(0, T, step, (ids_N, cache, jnp.zeros(B * self.k)))[2]

    @functools.partial(jax.jit, static_argnums=0)
    def search_alone(self, logits_NxV: jax.Array) -> jax.Array:
        """The search without the model."""

        def step(ids_N: jax.Array, cache: Any) -> tuple[jax.Array, None, Any]:
            # Otherwise XLA would look at logits that stay the same once, before the loop.
            logits_NxV = lax.optimization_barrier(cache)
            return logits_NxV, None, logits_NxV

        return self._search(step, logits_NxV, None, ends=False)

    @functools.partial(jax.jit, static_argnums=0)
    def cached(self, weights: Weights, batch: Batch) -> jax.Array:
        """The hyps i32[B, k, T] of `decode`, if all of them end with step T."""
        module = self._module(weights)
        source, logits_of = module.encode(batch), module.softmax.laid_out()

        def step(ids_N: jax.Array, cache: Any) -> tuple[jax.Array, None, Any]:
            features_NxD, _, cache = module.step(ids_N, source, cache)
            return logits_of(features_NxD), None, cache

        return self._search(step, module.init_cache(source, self.k, T), module.cache_axes)

    @functools.partial(jax.jit, static_argnums=0)
    def recomputed(self, weights: Weights, batch: Batch) -> jax.Array:
        """The same hyps, found without a cache."""
        module = self._module(weights)
        source_NxPxD = jnp.tile(module.encode_embedded(module.embed_source(batch), batch), (self.k, 1, 1))
        of_source = {"src_paddings": jnp.tile(batch["src_paddings"], (self.k, 1))}

        def features(ids_NxT: jax.Array, t: jax.Array) -> jax.Array:
            found = module.predict(source_NxPxD, module.embed_target({"tgt_ids": ids_NxT}), of_source)
            return lax.dynamic_index_in_dim(found.features, t, 1, keepdims=False)

        return self._without_cache(module, features)

    @functools.partial(jax.jit, static_argnums=0)
    def recomputed_lean(self, weights: Weights, batch: Batch) -> jax.Array:
        """The same hyps, found without a cache of the target, and with as little work as that allows."""
        module = self._module(weights)
        source = module.decoder.project_source(module.encode_embedded(module.embed_source(batch), batch))
        source_mask = padding_mask(batch["src_paddings"])

        def of_prefix(L: int, ids_NxT: jax.Array, t: jax.Array) -> jax.Array:
            x_NxLxD = module.embed_target({"tgt_ids": ids_NxT[:, :L]})
            x_NxLxD += jnp.broadcast_to(sinusoid(jnp.arange(L)[None], x_NxLxD.shape[-1]), x_NxLxD.shape)
            cache = module.decoder.init_cache(len(ids_NxT), L)
            found, _ = module.decoder.extend_step(x_NxLxD, cache, 0, source=source, source_mask=source_mask)
            return lax.dynamic_index_in_dim(found.output, t, 1, keepdims=False)

        lengths = [functools.partial(of_prefix, L) for L in _PREFIXES]
        return self._without_cache(module, lambda ids_NxT, t: lax.switch(t // _PREFIXES[0], lengths, ids_NxT, t))

    @functools.partial(jax.jit, static_argnums=0)
    def log_probs(self, weights: Weights, batch: Batch, ids_BxkxL: jax.Array) -> jax.Array:
        """f32[B, k], of hyps of L tokens, teacher-forced."""
        module = self._module(weights)

        def of_one(ids_BxL: jax.Array) -> jax.Array:
            before_BxL = jnp.roll(ids_BxL, 1, axis=1).at[:, 0].set(self.sos_id)
            forced = {"tgt_ids": before_BxL, "tgt_paddings": jnp.zeros(ids_BxL.shape)}
            scores = module.softmax.scores(module(batch | forced).features, ids_BxL)
            return (scores.label_logit - scores.log_z).sum(axis=1)

        return lax.map(of_one, ids_BxkxL.swapaxes(0, 1)).T

    def _module(self, weights: Weights) -> TransformerModule:
        module = self._model.merge(weights)
        assert isinstance(module, TransformerModule)
        return module

    def _without_cache(
        self, module: TransformerModule, features: Callable[[jax.Array, jax.Array], jax.Array]
    ) -> jax.Array:
        """features(ids [N, T], t): [N, D], of position t."""
        logits_of = module.softmax.laid_out()

        def step(ids_N: jax.Array, cache: Any) -> tuple[jax.Array, None, Any]:
            ids_NxT, t = cache
            ids_NxT = lax.dynamic_update_index_in_dim(ids_NxT, ids_N, t, 1)
            return logits_of(features(ids_NxT, t)), None, (ids_NxT, t + 1)

        return self._search(step, (jnp.zeros((B * self.k, T), jnp.int32), jnp.int32(0)), 0)

    def _search(self, step: Callable[..., Any], cache: Any, axes: Any, *, ends: bool = True) -> jax.Array:
        return beam_search(
            step,
            cache,
            num_beams=B,
            num_hyps_per_beam=self.k,
            max_steps=T,
            eos_id=self.eos_id,
            start_ids=jnp.full(B, self.sos_id),
            scores="logits",
            cache_axes=axes,
            beam_size=_NO_LIMIT,
            valid_eos_max_logit_delta=_NO_LIMIT,
            force_eos_in_last_step=ends,
        ).ids


def _batch(vocabulary: int, eos_id: int) -> Batch:
    """As `Translation.encode_lines` makes it of lines of 40 tokens."""
    ids_BxP = np.random.default_rng(0).integers(3, vocabulary, (B, P)).astype(np.int32)
    ids_BxP[:, S - 1 :] = eos_id
    return {
        "src_ids": ids_BxP,
        "src_paddings": np.broadcast_to(np.arange(P) >= S, (B, P)).astype(np.float32),
        "src_length": np.full(B, S, np.int32),
        "weight": np.ones(B, np.float32),
    }


@dataclasses.dataclass(frozen=True)
class Best:
    """Of each sentence the hyp i32[B, L] of the highest log-probability f32[B]."""

    ids: np.ndarray
    log_probs: np.ndarray

    @classmethod
    def of(cls, ids_BxkxL: np.ndarray, log_prob_Bxk: np.ndarray) -> Best:
        best_B, row_B = log_prob_Bxk.argmax(axis=1), np.arange(len(ids_BxkxL))
        return cls(ids_BxkxL[row_B, best_B], log_prob_Bxk[row_B, best_B])

    def agreement(self, other: Best) -> tuple[float, bool]:
        """The share of sentences whose best hyp is the same, and whether the others are ties."""
        same_B = (self.ids == other.ids).all(axis=1)
        is_tie_B = np.abs(self.log_probs - other.log_probs) <= _TIE
        return float(same_B.mean()), bool((same_B | is_tie_B).all())


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def _measured(
    subject: Subject,
    weights: Weights,
    registered: Subject,
    registered_weights: Weights,
    translators: Mapping[str, Any],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """The figures of a model, and "agree"."""
    k = subject.k
    batch = _batch(subject.config.source_vocab_size, subject.eos_id)
    logits_NxV = 4 * jax.random.normal(jax.random.key(2), (B * k, subject.config.target_vocab_size))
    logits_NxV = logits_NxV.at[:, subject.eos_id].set(-50.0)
    source_BxS = batch["src_ids"][:, :S]
    contenders: dict[str, Callable[[], Any]] = {
        "registered": lambda: registered.decode(registered_weights, batch),
        "decode": lambda: subject.decode(weights, batch),
        "model": lambda: subject.model_alone(weights, batch, True),
        "model_logits": lambda: subject.model_alone(weights, batch, False),
        "alone_logits": lambda: subject.search_alone(logits_NxV),
        **{kind: functools.partial(run, source_BxS, k, T) for kind, run in translators.items()},
    }
    # Compiled, but not run for that.
    without_cache = {
        kind: run.lower(subject, weights, batch).compile()
        for kind, run in (("prefix_recompute", Subject.recomputed), ("prefix_recompute_lean", Subject.recomputed_lean))
    }

    def best(ids_BxkxL: Any) -> Best:
        return Best.of(np.asarray(ids_BxkxL), np.asarray(subject.log_probs(weights, batch, ids_BxkxL)))

    ours = best(subject.cached(weights, batch)[:, :, :-1])
    found: dict[str, Any] = {"identical_hypotheses": None, "score_difference": None}
    agree = True
    if "ctranslate2" in translators:
        ids_BxkxL, score_Bxk = translators["ctranslate2"](source_BxS, k, T - 1)
        share, agree = ours.agreement(best(ids_BxkxL))
        difference = float(np.abs(score_Bxk - subject.log_probs(weights, batch, ids_BxkxL)).max())
        found |= {"identical_hypotheses": share, "score_difference": difference}
        agree = agree and difference <= _TOLERANCE
    for run in contenders.values():  # compiles, and touches memory
        jax.block_until_ready(run())
    slow: dict[str, list[float]] = {kind: [] for kind in without_cache}
    shares = []
    for i in range(args.slow_rounds):
        print(f"slow round {i + 1}/{args.slow_rounds}", file=sys.stderr)
        for kind, run in without_cache.items():
            start = time.perf_counter()
            ids_BxkxT = jax.block_until_ready(run(weights, batch))
            spent = time.perf_counter() - start
            slow[kind].append(spent / _seconds(contenders["decode"]))
            share, is_same = ours.agreement(best(ids_BxkxT[:, :, :-1]))
            shares.append(share)
            agree = agree and is_same
    found["recomputed_identical"] = min(shares, default=None)
    seconds, _ = timed_in_turn(contenders, args.rounds)

    def ratio(other: str) -> float | None:
        if other not in seconds:
            return None
        return median([a / c for a, c in zip(seconds[other], seconds["decode"], strict=True)])

    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 4)

    return {
        "target_tokens_per_second": {
            contender: round(B * T / median(seconds[contender]), 1)
            for contender in ("registered", "decode", *translators)
        },
        "bookkeeping_share": rounded(1 - (ratio("model") or 0.0)),
        "bookkeeping_share_logits": rounded(1 - (ratio("model_logits") or 0.0)),
        "alone_share_logits": rounded(ratio("alone_logits")),
        **{f"{kind}_ratio": rounded(median(ratios)) if ratios else None for kind, ratios in slow.items()},
        "ctranslate2_ratio": rounded(ratio("ctranslate2")),
        "ctranslate2_int8_ratio": rounded(ratio("ctranslate2_int8")),
        **found,
        "step_milliseconds": {contender: round(median(spent) / T * 1e3, 2) for contender, spent in seconds.items()},
        "agree": agree,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", choices=("Base", "Small"), nargs="+", default=("Base", "Small"))
    parser.add_argument("--hyps", type=int, nargs="+", default=(4, 8), help="k")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=1, help="of the decoders without a cache")
    args = parser.parse_args()
    keep_memory()
    has_ctranslate2 = importlib.util.find_spec("ctranslate2") is not None
    if not has_ctranslate2:
        print("ctranslate2 is not installed: without its figures", file=sys.stderr)
    cpus = len(os.sched_getaffinity(0))
    figures: dict[str, Any] = {}
    for name in args.models:
        translators: dict[str, Any] = {}
        subject = Subject(name, 1)
        weights, registered_weights = subject.init(), Subject(name, 1, registered=True).init()
        if has_ctranslate2:
            with tempfile.TemporaryDirectory() as folder:
                ids = {"sos_id": subject.sos_id, "eos_id": subject.eos_id}
                _ctranslate2.save(subject.config, weights.params, folder, **ids)
                for kind, compute_type in (("ctranslate2", "float32"), ("ctranslate2_int8", "int8")):
                    translators[kind] = _ctranslate2.translator(folder, compute_type=compute_type, threads=cpus)
        for k in args.hyps:
            print(f"{name}, k = {k}", file=sys.stderr)
            subject, registered = Subject(name, k), Subject(name, k, registered=True)
            figures[f"{name}_k{k}"] = _measured(subject, weights, registered, registered_weights, translators, args)
    report(
        "translation_decoding",
        **figures,
        goals={"bookkeeping_share": 0.05, "prefix_recompute_ratio": 4, "ctranslate2_ratio": 1},
        device=jax.devices()[0].device_kind,
        cpus=cpus,
        rounds=args.rounds,
        slow_rounds=args.slow_rounds,
    )
    return 0 if all(figure["agree"] for figure in figures.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
