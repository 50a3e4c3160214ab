"""A whole beam search over a Transformer with random weights: what of its time is not the model's.

    python benchmarks/beam_search.py [--rounds 3] [--implementation auto]

6 layers of decoder, 512 wide, 8 heads, 2048 in between, attention to a source of 40 positions; 32,000 tokens; 16
sentences, k = 4, 40 steps and no early stop. The source is what 6 layers of encoder have made of it: that runs once and
is not measured. Everything runs in this process, in turns, so that what else the machine does hits all. Prints one JSON
line:

bookkeeping_share: what the search takes beyond the same loop with the model alone (its log-softmax included; tokens are
fixed, nothing is chosen, ranked or reordered), as a share of the search. bookkeeping_share_logits: likewise where the
model leaves the logits as they are and the search normalises those it looks at; speedup_logits: of that whole search.
alone_share, alone_share_logits: seconds of the search over scores that are there already, over those of the search with
the model: the same shares measured another way, which what else the machine does disturbs less.
step_ratio_35_5: cost of the decoder's step at t = 35 over that at t = 5.
copy_ratio: seconds of the search whose cache is gathered at every step, over those of that with a `CacheIndex` and
attention under its mask; take_ratio: of that which gathers rows by the index instead, likewise.
growth: seconds with k = 2, 4, 8 over those with k = 1.
target_tokens_per_second: sentences * steps / seconds with k = 4.
All are medians over rounds, of ratios taken within a round. Exit status 1 if the three caches find different hyps.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _compare import report, timed_in_turn
from jax import lax

from raylingvo.ops.search.beam_search import BeamSearchResult, beam_search
from raylingvo.ops.search.cache import CacheIndex

# b sentences, k hyps each, N = b*k slots (slot i is hyp i // b of beam i % b), T steps, S source positions, V tokens, D
# features: H heads of K; F in between.
b, T, S, V, D, H, F, LAYERS = 16, 40, 40, 32_000, 512, 8, 2048, 6
K = D // H
EOS = 2


def _weights() -> Any:
    keys = iter(jax.random.split(jax.random.key(0), 100))

    def matrix(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape) / np.sqrt(shape[-2])

    layers = [
        {
            "qkv": matrix(D, 3 * D),
            "out": matrix(D, D),
            "cross_query": matrix(D, D),
            "cross_out": matrix(D, D),
            "source_keys_bxHxKxS": matrix(b, H, K, S),
            "source_values_bxHxSxK": matrix(b, H, S, K),
            "up": matrix(D, F),
            "down": matrix(F, D),
        }
        for _ in range(LAYERS)
    ]
    return {"embedding": matrix(V, D) * np.sqrt(V), "softmax": matrix(D, V), "layers": layers}


def _norm(x: jax.Array) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


def _by_beam(x_NxD: jax.Array) -> jax.Array:
    """[b, H, k, K]."""
    return x_NxD.reshape(-1, b, H, K).transpose(1, 2, 0, 3)


def _by_slot(x_bxHxkxK: jax.Array) -> jax.Array:
    """[N, D]."""
    return x_bxHxkxK.transpose(2, 0, 1, 3).reshape(-1, D)


class Masked:
    """Keys and values are written once; all hyps of a beam attend to all that is cached for it, under a mask."""

    axes = (None, 0)

    def create(self, k: int) -> Any:
        rows = jnp.zeros((b, H, K, T * k)), jnp.zeros((b, H, T * k, K))
        return [rows] * LAYERS, CacheIndex.create(T, b * k)

    def step(self, cache: Any) -> tuple[jax.Array, Any]:
        return cache.step, cache.mask(cache.slots.shape[1] // b).reshape(b, 1, -1, T * (cache.slots.shape[1] // b))

    def attend(self, query_NxD: jax.Array, key_NxD: jax.Array, value_NxD: jax.Array, rows: Any, step: Any) -> Any:
        t, mask_bx1xkxTk = step
        keys_bxHxKxTk, values_bxHxTkxK = rows
        place = t * len(query_NxD) // b
        key_bxHxKxk = _by_beam(key_NxD).transpose(0, 1, 3, 2)
        keys_bxHxKxTk = lax.dynamic_update_slice_in_dim(keys_bxHxKxTk, key_bxHxKxk, place, 3)
        values_bxHxTkxK = lax.dynamic_update_slice_in_dim(values_bxHxTkxK, _by_beam(value_NxD), place, 2)
        scores_bxHxkxTk = _by_beam(query_NxD) @ keys_bxHxKxTk / np.sqrt(K)
        probs_bxHxkxTk = jax.nn.softmax(jnp.where(mask_bx1xkxTk, scores_bxHxkxTk, -1e30))
        return _by_slot(probs_bxHxkxTk @ values_bxHxTkxK), (keys_bxHxKxTk, values_bxHxTkxK)

    def after(self, index: CacheIndex) -> CacheIndex:
        return index


class Taken(Masked):
    """Keys and values are written once; each hyp's are gathered from there at every step."""

    def create(self, k: int) -> Any:
        rows = jnp.zeros((b * k, H, T, K))
        return [(rows, rows)] * LAYERS, CacheIndex.create(T, b * k)

    def step(self, cache: Any) -> tuple[jax.Array, Any]:
        return cache.step, cache

    def history(self, rows_NxHxTxK: jax.Array, index: CacheIndex) -> jax.Array:
        return index.take(rows_NxHxTxK, step_axis=2, slot_axis=0)

    def attend(self, query_NxD: jax.Array, key_NxD: jax.Array, value_NxD: jax.Array, rows: Any, step: Any) -> Any:
        t, index = step
        rows = tuple(
            lax.dynamic_update_index_in_dim(old, new.reshape(-1, H, K), t, 2)
            for old, new in zip(rows, (key_NxD, value_NxD), strict=True)
        )
        keys, values = (self.history(new, index) for new in rows)
        scores_NxHxT = jnp.einsum("nhd,nhtd->nht", query_NxD.reshape(-1, H, K), keys) / np.sqrt(K)
        probs_NxHxT = jax.nn.softmax(jnp.where((jnp.arange(T) <= t)[None, None], scores_NxHxT, -1e30))
        return jnp.einsum("nht,nhtd->nhd", probs_NxHxT, values).reshape(-1, D), rows


class Copied(Taken):
    """Keys and values of each slot lie together, and are all gathered after every step."""

    axes = 0

    def create(self, k: int) -> Any:
        return super().create(k)[0], jnp.int32(0)

    def step(self, cache: Any) -> tuple[jax.Array, Any]:
        return cache, None

    def history(self, rows_NxHxTxK: jax.Array, index: Any) -> jax.Array:
        return rows_NxHxTxK

    def after(self, index: Any) -> Any:
        return index + 1


def _decoder(weights: Any, attention: Masked, scores: str) -> Callable[[jax.Array, Any], tuple[Any, ...]]:
    def step_fn(ids_N: jax.Array, cache: Any) -> tuple[Any, ...]:
        rows, index = cache
        step = attention.step(index)
        x_NxD = weights["embedding"][ids_N]
        new_rows = []
        for layer, layer_rows in zip(weights["layers"], rows, strict=True):
            query_key_value = jnp.split(_norm(x_NxD) @ layer["qkv"], 3, axis=-1)
            context_NxD, layer_rows = attention.attend(*query_key_value, layer_rows, step)
            new_rows.append(layer_rows)
            x_NxD += context_NxD @ layer["out"]
            query_bxHxkxK = _by_beam(_norm(x_NxD) @ layer["cross_query"])
            probs_bxHxkxS = jax.nn.softmax(query_bxHxkxK @ layer["source_keys_bxHxKxS"] / np.sqrt(K))
            x_NxD += _by_slot(probs_bxHxkxS @ layer["source_values_bxHxSxK"]) @ layer["cross_out"]
            x_NxD += jax.nn.relu(_norm(x_NxD) @ layer["up"]) @ layer["down"]
        logits_NxV = _norm(x_NxD) @ weights["softmax"]
        scores_NxV = logits_NxV if scores == "logits" else jax.nn.log_softmax(logits_NxV)
        return scores_NxV, None, (new_rows, attention.after(index))

    return step_fn


@functools.partial(jax.jit, static_argnames=("attention", "k", "scores", "implementation"))
def _search(weights: Any, attention: Masked, k: int, scores: Any, implementation: Any) -> BeamSearchResult:
    return beam_search(
        _decoder(weights, attention, scores),
        attention.create(k),
        num_beams=b,
        num_hyps_per_beam=k,
        max_steps=T,
        eos_id=EOS,
        start_ids=jnp.arange(b),
        scores=scores,
        cache_axes=attention.axes,
        beam_size=1e9,
        valid_eos_max_logit_delta=50.0,
        implementation=implementation,
    )


@functools.partial(jax.jit, static_argnames=("k", "scores"))
def _model_alone(weights: Any, k: int, scores: str) -> jax.Array:
    """The loop of the search without the search."""
    attention = Masked()
    step_fn = _decoder(weights, attention, scores)

    def step(t: jax.Array, carry: Any) -> Any:
        ids_N, (rows, index), _ = carry
        scores_NxV, _, cache = step_fn(ids_N, (rows, CacheIndex(t, index.slots)))
        # All scores are written, as they are for the search; and the next step waits for them.
        some_N = lax.optimization_barrier(scores_NxV)[:, 0]
        return ids_N + jnp.isnan(some_N), cache, some_N

    ids_N = jnp.tile(jnp.arange(b), k)
    return lax.fori_loop(0, T, step, (ids_N, attention.create(k), jnp.zeros(b * k)))[2]


@functools.partial(jax.jit, static_argnames="k")
def _steps_at(weights: Any, k: int, t: jax.Array) -> jax.Array:
    """10 steps of the decoder at one t."""
    step_fn = _decoder(weights, Masked(), "log_probs")

    def step(_: jax.Array, carry: Any) -> Any:
        ids_N, (rows, index), _ = carry
        scores_NxV, _, cache = step_fn(ids_N, (rows, CacheIndex(t, index.slots)))
        some_N = lax.optimization_barrier(scores_NxV)[:, 0]
        return ids_N + jnp.isnan(some_N), cache, some_N

    return lax.fori_loop(0, 10, step, (jnp.tile(jnp.arange(b), k), Masked().create(k), jnp.zeros(b * k)))[2]


@functools.partial(jax.jit, static_argnames=("scores", "implementation"))
def _search_alone(scores_NxV: jax.Array, scores: Any, implementation: Any) -> BeamSearchResult:
    """The search without the model."""

    def step_fn(ids_N: jax.Array, cache: Any) -> tuple[Any, ...]:
        # Otherwise XLA would look at scores that stay the same once, before the loop.
        scores_NxV = lax.optimization_barrier(cache)
        return scores_NxV, None, scores_NxV

    return beam_search(
        step_fn,
        scores_NxV,
        num_beams=b,
        num_hyps_per_beam=len(scores_NxV) // b,
        max_steps=T,
        eos_id=EOS,
        start_ids=jnp.arange(b),
        scores=scores,
        cache_axes=None,
        beam_size=1e9,
        valid_eos_max_logit_delta=50.0,
        implementation=implementation,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--implementation", default="auto")
    args = parser.parse_args()
    weights = _weights()
    search = functools.partial(_search, weights, implementation=args.implementation)
    logits_NxV = 3 * jax.random.normal(jax.random.key(1), (4 * b, V))
    log_prob_NxV = jax.nn.log_softmax(logits_NxV)
    masked, taken, copied = Masked(), Taken(), Copied()
    contenders: dict[str, Callable[[], Any]] = {
        "model": lambda: _model_alone(weights, 4, "log_probs"),
        "search": lambda: search(masked, 4, "log_probs"),
        "model_logits": lambda: _model_alone(weights, 4, "logits"),
        "search_logits": lambda: search(masked, 4, "logits"),
        "alone": lambda: _search_alone(log_prob_NxV, "log_probs", args.implementation),
        "alone_logits": lambda: _search_alone(logits_NxV, "logits", args.implementation),
        "copied": lambda: search(copied, 4, "log_probs"),
        "taken": lambda: search(taken, 4, "log_probs"),
        "k1": lambda: search(masked, 1, "log_probs"),
        "k2": lambda: search(masked, 2, "log_probs"),
        "k8": lambda: search(masked, 8, "log_probs"),
        "at_5": lambda: _steps_at(weights, 4, jnp.int32(5)),
        "at_35": lambda: _steps_at(weights, 4, jnp.int32(35)),
    }
    results = {name: jax.block_until_ready(run()) for name, run in contenders.items()}  # compiles them
    print("compiled", file=sys.stderr)
    seconds, _ = timed_in_turn(contenders, args.rounds)

    def ratio(ours: str, baseline: str) -> float:
        return statistics.median(a / c for a, c in zip(seconds[ours], seconds[baseline], strict=True))

    found = results["search"]
    same = all(
        np.array_equal(found.ids, results[name].ids) and np.allclose(found.scores, results[name].scores, rtol=1e-4)
        for name in ("copied", "taken", "search_logits")
    )
    report(
        "beam_search",
        bookkeeping_share=round(1 - ratio("model", "search"), 4),
        bookkeeping_share_logits=round(1 - ratio("model_logits", "search_logits"), 4),
        alone_share=round(ratio("alone", "search"), 4),
        alone_share_logits=round(ratio("alone_logits", "search_logits"), 4),
        speedup_logits=round(ratio("search", "search_logits"), 3),
        step_ratio_35_5=round(ratio("at_35", "at_5"), 3),
        copy_ratio=round(ratio("copied", "search"), 3),
        take_ratio=round(ratio("taken", "search"), 3),
        growth={k: round(ratio(name, "k1"), 2) for k, name in ((2, "k2"), (4, "search"), (8, "k8"))},
        target_tokens_per_second=round(b * T / statistics.median(seconds["search"])),
        step_milliseconds={
            name: round(statistics.median(spent) / (10 if name.startswith("at") else T) * 1e3, 2)
            for name, spent in seconds.items()
        },
        same_hyps=same,
        implementation=args.implementation,
        device=jax.devices()[0].device_kind,
        cpus=len(os.sched_getaffinity(0)),
        rounds=args.rounds,
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
