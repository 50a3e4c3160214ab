"""What the benchmarks share: commands that print one JSON line, run in turn, and the medians of their figures."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raylingvo.actors import memory


def last_json_line(command: Sequence[str]) -> dict[str, Any]:
    """Runs a command to its end; the JSON object in the last line of its standard output."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def in_turn(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Runs the commands A B A B ..: what slows the machine for a while hits all of them. Shows progress on stderr."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for i in range(rounds):
        for name, command in commands.items():
            print(f"round {i + 1}/{rounds}: {name}", file=sys.stderr)
            results[name].append(last_json_line(command))
    return results


def timed_in_turn(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, list[float]], Any]:
    """Calls the contenders A B A B .. in this process: the seconds of each round, and the last results, by name.

    Waits for results that are JAX arrays. Call them once before, so that nothing is compiled here.
    """
    import jax  # here, for the benchmarks of start-up

    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    results: dict[str, Any] = {}
    for i in range(rounds):
        print(f"round {i + 1}/{rounds}", file=sys.stderr)
        for name, run in contenders.items():
            start = time.perf_counter()
            results[name] = jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return seconds, results


def keep_memory() -> None:
    """Starts the benchmark again in a process that keeps its memory as those of roles do, whatever it measures."""
    if wanted := memory.wanted():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)


def without_zeros(params: Any) -> Any:
    """A tree of weights, with noise in place of those arrays that are all 0: what biases do would not be seen."""
    import jax

    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x if x.any() else 0.1 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def report(benchmark: str, **figures: Any) -> None:
    """Prints the benchmark's one JSON line."""
    print(json.dumps({"benchmark": benchmark, **figures}))
