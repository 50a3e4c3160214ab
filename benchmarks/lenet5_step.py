"""LeNet-5's train step against the same step written with lax.conv_general_dilated, nnx.max_pool and autodiff.

    python benchmarks/lenet5_step.py [--batch-size 256] [--rounds 5] [--steps 4] [--keep-memory]

Both train in this process, from the same weights, on the same batches of scikit-learn's digits, with the same dropout,
by the Trainer's own train step; float32, whatever cores the process may use. Their first 50 losses are compared, which
also warms them up; then they are timed in turns of `--steps` steps, so that what else the machine does hits both.
With --keep-memory, both have the malloc of roles, which keeps memory between steps (raylingvo/actors/memory.py); else
the system's default, which gives it back. Prints one JSON line; `ratio` is the median over rounds of baseline seconds /
our seconds. Exit status 1 if a loss differs by more than 1e-4.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import lax

from raylingvo.actors import memory
from raylingvo.data.images import Digits
from raylingvo.models.image.classifier import ImageClassification
from raylingvo.models.image.lenet import LeNet5
from raylingvo.models.image.mnist import mnist_lenet5
from raylingvo.ops._native import why_unavailable
from raylingvo.training.state import init_state
from raylingvo.training.step import make_train_step

_COMPARED_STEPS = 50
_TOLERANCE = 1e-4


class PlainConvReluPool(nnx.Module):
    """What one writes first."""

    def __init__(self, kernel: nnx.Param) -> None:
        self.kernel = kernel

    def __call__(self, x: jax.Array) -> jax.Array:
        y = lax.conv_general_dilated(x, self.kernel[...], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return nnx.max_pool(jax.nn.relu(y), (2, 2), (2, 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainLeNet5(LeNet5):
    """LeNet-5 with its two convolutions in plain layers, with the same weights."""

    def build(self, rngs: nnx.Rngs) -> Any:
        model = super().build(rngs)
        model.conv1, model.conv2 = PlainConvReluPool(model.conv1.kernel), PlainConvReluPool(model.conv2.kernel)
        return model


class Run:
    """A model in training, by the Trainer's own step and MNIST's recipe."""

    def __init__(self, model: LeNet5, batches: Iterator[dict[str, np.ndarray]]) -> None:
        experiment = dataclasses.replace(mnist_lenet5(), task=ImageClassification(model=model))
        self._batches = batches
        self._state = init_state(experiment, next(batches))
        self._step = jax.jit(make_train_step(experiment), donate_argnums=0)

    def step(self) -> None:
        self._state, _ = self._step(self._state, next(self._batches))

    def loss(self) -> float:
        """Of the next step."""
        before = float(self._state.totals["loss"][0])
        self.step()
        return (float(self._state.totals["loss"][0]) - before) / self.batch_size

    @property
    def batch_size(self) -> float:
        return float(self._state.totals["loss"][1]) / float(self._state.step)

    def seconds(self, steps: int) -> float:
        """Of `steps` steps, until the last one's weights are there."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        jax.block_until_ready(self._state)
        return time.perf_counter() - start


def _batches(batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    source = Digits(split="train").open()
    order = np.random.default_rng(0)
    weight = np.ones(batch_size, np.float32)
    chosen = [order.choice(len(source), batch_size, replace=False) for _ in range(_COMPARED_STEPS)]
    return itertools.cycle([source.take(indices) | {"weight": weight} for indices in chosen])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps of each version in a round")
    parser.add_argument("--keep-memory", action="store_true", help="with the malloc settings of roles")
    args = parser.parse_args()
    if args.keep_memory and not memory.KEEP.items() <= os.environ.items():
        # malloc reads them when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | memory.KEEP)

    ours = Run(LeNet5(), _batches(args.batch_size))
    baseline = Run(PlainLeNet5(), _batches(args.batch_size))
    losses = [(ours.loss(), baseline.loss()) for _ in range(_COMPARED_STEPS)]
    difference = max(abs(a - b) for a, b in losses)

    seconds = [(ours.seconds(args.steps), baseline.seconds(args.steps)) for _ in range(args.rounds)]
    our_median, baseline_median = (statistics.median(column) for column in zip(*seconds, strict=True))
    result = {
        "benchmark": "lenet5_step",
        "ratio": round(statistics.median(b / a for a, b in seconds), 3),
        "ratio_of_rounds": [round(b / a, 3) for a, b in seconds],
        "steps_per_second": round(args.steps / our_median, 3),
        "baseline_steps_per_second": round(args.steps / baseline_median, 3),
        "max_loss_difference": difference,
        "first_loss": losses[0][0],
        "last_compared_loss": losses[-1][0],
        "batch_size": args.batch_size,
        "keep_memory": args.keep_memory,
        "cpp_ops": not why_unavailable(),
        "device": jax.devices()[0].device_kind,
        "cpus": len(os.sched_getaffinity(0)),
    }
    print(json.dumps(result))
    return 0 if difference <= _TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
