"""Microseconds per step of the C++ beam search step: against reading the scores once, and against its twin in pure JAX.

    python benchmarks/beam_search_step.py [--rounds 7]

A search is one jitted loop over all steps, the state donated to it; scores are those of a few arrays in turn, so that
nothing is copied for the loop. Everything runs in this process, in turns. Prints one JSON line; figures are medians:

us_per_step: mean over a search of T steps. lingvo_ratio: what Lingvo's compiled op took there, on such a machine, over
it. us_first_quarter, us_last_quarter: of the steps of a search; us_four_times_T: with histories of 4T rows.
us_per_call: of one jitted step per call, the state donated. cpus: what XLA has threads for.
At V=32000 also: read_ratio: us_per_step over the time to read the scores once, for which `np.max` per thread and a max
reduction under jit compete; xla_ratio: microseconds of the twin in pure JAX over us_per_step; top_k_ratio: those of
`lax.top_k` alone, which the twin does without.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _compare import report
from jax import lax

from raylingvo.ops.search.beam_search_state import BeamSearchState
from raylingvo.ops.search.beam_search_step import beam_search_step

# (b, k, V, T, S): microseconds of a step of Lingvo's op.
_LINGVO = {
    (1, 8, 96, 100, 200): 120,
    (16, 8, 96, 100, 200): 1350,
    (8, 4, 32000, 60, 60): 320,
    (32, 8, 32000, 60, 60): 3000,
}
_EOS = 2
_NUM_ARRAYS = 4  # of scores

Seconds = dict[str, list[float]]


class Search:
    """Searches of `num_rows` steps at most over the same scores."""

    def __init__(self, b: int, k: int, num_rows: int, atten_probs: jax.Array, arrays: tuple[jax.Array, ...]):
        self._sizes = (b, k, num_rows, atten_probs.shape[1])
        self._inputs = (atten_probs, arrays)
        self._step = functools.partial(beam_search_step, eos_id=_EOS, num_hyps_per_beam=k)

    def new_state(self) -> BeamSearchState:
        return jax.block_until_ready(BeamSearchState.create(*self._sizes))

    def loop(self, state: BeamSearchState, start: int, count: int, implementation: str = "cpp") -> BeamSearchState:
        return jax.block_until_ready(self._loop(state, start, count // _NUM_ARRAYS, implementation, *self._inputs))

    @functools.partial(jax.jit, static_argnums=(0, 4), donate_argnums=1)
    def _loop(self, state, start, num_turns, implementation, atten_probs, arrays):
        def turn(i, state):
            for j, log_probs in enumerate(arrays):
                t = start + i * len(arrays) + j
                state = self._step(log_probs, atten_probs, state, t, implementation=implementation)
            return state

        return lax.fori_loop(0, num_turns, turn, state)

    def calls(self, state: BeamSearchState, count: int) -> BeamSearchState:
        atten_probs, arrays = self._inputs
        for t in range(count):
            state = self._call(state, arrays[t % len(arrays)], atten_probs, np.int32(t))
        return jax.block_until_ready(state)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _call(self, state, log_probs, atten_probs, t):
        return self._step(log_probs, atten_probs, state, t, implementation="cpp")


@jax.jit
def _read(arrays: tuple[jax.Array, ...]) -> jax.Array:
    def turn(_, greatest):
        for array in arrays:  # starts from the greatest so far: a loop that did nothing new would be left out
            greatest = jnp.max(lax.reduce(array, greatest, lax.max, (1,)))
        return greatest

    return lax.fori_loop(0, 8, turn, -jnp.inf)


def _read_seconds(arrays: tuple[jax.Array, ...], pool: ThreadPoolExecutor, num_threads: int) -> float:
    """The faster of two ways to read one of the arrays."""
    in_jax = _timed(lambda: jax.block_until_ready(_read(arrays))) / (8 * len(arrays))
    # A thread reads its part of all the arrays, several times, so that handing over work counts for nothing.
    parts = [[np.array_split(np.asarray(array), num_threads)[i] for array in arrays] for i in range(num_threads)]
    in_numpy = _timed(lambda: list(pool.map(lambda part: [rows.max() for _ in range(8) for rows in part], parts)))
    return min(in_jax, in_numpy / (8 * len(arrays)))


def _timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _scores(random: np.random.Generator, num_slots: int, V: int) -> jax.Array:
    logits = random.standard_normal((num_slots, V), np.float32) * 2
    logits[:, _EOS] += 4  # hyps end now and then
    return jax.nn.log_softmax(jnp.asarray(logits))


def _measure(sizes: tuple[int, int, int, int, int], rounds: int, num_threads: int) -> dict[str, float]:
    b, k, V, T, S = sizes
    random = np.random.default_rng(0)
    arrays = tuple(_scores(random, b * k, V) for _ in range(_NUM_ARRAYS))
    atten_probs = jnp.asarray(random.random((b * k, S), np.float32))
    search, longer = (Search(b, k, rows, atten_probs, arrays) for rows in (T, 4 * T))
    top_k = jax.jit(lambda arrays: [lax.top_k(scores, k + 1) for scores in arrays])
    is_large = V > 10_000
    quarter = T // (4 * _NUM_ARRAYS) * _NUM_ARRAYS

    def quarters(seconds: Seconds) -> None:
        state, times = search.new_state(), []
        for start in range(0, T - quarter + 1, quarter):
            begin = time.perf_counter()
            state = search.loop(state, start, quarter)
            times.append((time.perf_counter() - begin) / quarter)
        seconds["first"].append(times[0])
        seconds["last"].append(times[-1])

    seconds: Seconds = {name: [] for name in ("search", "first", "last", "longer", "calls", "read", "xla", "top_k")}
    with ThreadPoolExecutor(num_threads) as pool:
        for i in range(rounds + 1):
            if i == 1:  # the first round compiled
                seconds = {name: [] for name in seconds}
            for name, function, at in (("search", search.loop, search), ("longer", longer.loop, longer)):
                state = at.new_state()
                seconds[name].append(_timed(functools.partial(function, state, 0, T)) / T)
            quarters(seconds)
            state = search.new_state()
            seconds["calls"].append(_timed(functools.partial(search.calls, state, T)) / T)
            if is_large:
                seconds["read"].append(_read_seconds(arrays, pool, num_threads))
                state = search.new_state()
                seconds["xla"].append(
                    _timed(functools.partial(search.loop, state, 0, _NUM_ARRAYS, "xla")) / _NUM_ARRAYS
                )
                seconds["top_k"].append(_timed(lambda: jax.block_until_ready(top_k(arrays))) / _NUM_ARRAYS)

    def us(name: str) -> float:
        return round(statistics.median(seconds[name]) * 1e6, 2)

    def ratio(name: str, other: str) -> float:
        return round(statistics.median(x / y for x, y in zip(seconds[name], seconds[other], strict=True)), 3)

    figures = {
        "us_per_step": us("search"),
        "lingvo_ratio": round(_LINGVO[sizes] / us("search"), 2),
        "us_first_quarter": us("first"),
        "us_last_quarter": us("last"),
        "us_four_times_T": us("longer"),
        "us_per_call": us("calls"),
    }
    if is_large:
        gigabytes = b * k * V * 4 / 1e9
        figures |= {
            "us_read": us("read"),
            "read_gb_per_second": round(gigabytes / statistics.median(seconds["read"]), 1),
            "read_ratio": ratio("search", "read"),
            "us_xla": us("xla"),
            "xla_ratio": ratio("xla", "search"),
            "top_k_ratio": ratio("top_k", "search"),
        }
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    num_threads = len(os.sched_getaffinity(0))
    figures = {}
    for sizes in _LINGVO:
        print(f"(b, k, V, T, S) = {sizes}", file=sys.stderr)
        figures["b{}_k{}_V{}_T{}_S{}".format(*sizes)] = _measure(sizes, args.rounds, num_threads)
    report("beam_search_step", **figures, rounds=args.rounds, cpus=num_threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
