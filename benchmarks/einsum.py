"""`einsum` in C++ against XLA's, for the products of a Transformer's and an LSTM's step.

    python benchmarks/einsum.py [--rounds 30]

Prints one JSON line: for each product `ratio`, XLA's milliseconds over ours, the median over rounds in turns, and what
we reach of `gflops_peak`: what the cores do on a product of 1,024 x 1,024 x 1,024, the larger of both versions.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from _compare import keep_memory, median, report

from raylingvo.ops import einsum
from raylingvo.ops._native import Implementation

# 2,048 tokens, widths 384 and 1,536; 16 rows of 128 tokens, 6 heads of 64; an LSTM's frame of 32 rows; small ones.
_PRODUCTS = {
    "up": ("nd,df->nf", (2048, 384), (384, 1536)),
    "down": ("nf,fd->nd", (2048, 1536), (1536, 384)),
    "up, gradient of x": ("nf,df->nd", (2048, 1536), (384, 1536)),
    "up, gradient of the weight": ("nd,nf->df", (2048, 384), (2048, 1536)),
    "down, gradient of the weight": ("nf,nd->fd", (2048, 1536), (2048, 384)),
    "attention logits": ("btnh,bsnh->bnts", (16, 128, 6, 64), (16, 128, 6, 64)),
    "attention context": ("bnts,bsnh->btnh", (16, 6, 128, 128), (16, 128, 6, 64)),
    "LSTM frame": ("bi,io->bo", (32, 512), (512, 2048)),
    "softmax": ("nd,cd->nc", (640, 512), (10_000, 512)),
    "64 x 64 x 64": ("nd,df->nf", (64, 64), (64, 64)),
}
_LARGE = ("nd,df->nf", (1024, 1024), (1024, 1024))
_VERSIONS: tuple[Implementation, ...] = ("cpp", "xla")


def _measure(equation: str, x_shape: tuple[int, ...], y_shape: tuple[int, ...], rounds: int) -> dict[str, float]:
    """Median seconds of each version."""
    random = np.random.default_rng(0)
    x, y = (jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in (x_shape, y_shape))

    def jitted(implementation: Implementation) -> jax.stages.Wrapped:
        return jax.jit(lambda x, y: einsum(equation, x, y, implementation=implementation))

    functions = {version: jitted(version) for version in _VERSIONS}
    for function in functions.values():
        function(x, y).block_until_ready()
    seconds: dict[str, list[float]] = {version: [] for version in _VERSIONS}
    for _ in range(rounds):
        for version, function in functions.items():
            start = time.perf_counter()
            function(x, y).block_until_ready()
            seconds[version].append(time.perf_counter() - start)
    return {version: median(times) for version, times in seconds.items()}


def _gflop(equation: str, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> float:
    x, y = equation.partition("->")[0].split(",")
    sizes = dict(zip(x + y, x_shape + y_shape, strict=True))
    return 2e-9 * math.prod(sizes.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    keep_memory()
    peak = _gflop(*_LARGE) / min(_measure(*_LARGE, args.rounds).values())
    products = {}
    for name, product in _PRODUCTS.items():
        print(name, file=sys.stderr)
        seconds = _measure(*product, args.rounds)
        products[name] = {
            "ratio": round(seconds["xla"] / seconds["cpp"], 2),
            "gflops": round(_gflop(*product) / seconds["cpp"], 1),
        }
    report("einsum", gflops_peak=round(peak, 1), products=products, cpus=len(os.sched_getaffinity(0)))


if __name__ == "__main__":
    main()
