"""Steady steps/s of `raylingvo run` with evaluation off, against the same jitted step in a bare loop.

The bare loop is one process without Ray; its batches are in memory before it starts. Steady: the median over the run's
reports of 25 steps, without the first three, in which Ray's and the checkpoint library's start-up falls. Goal: >= 0.97.
The bound is 1: the runner adds input, reports, snapshots and checkpoints to the same steps on the same cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _compare import in_turn, median, report

from raylingvo.monitor.metrics_log import read_metrics

EXPERIMENT = "image.digits.LeNet5"
REPORT_STEPS = 25


def settings(steps: int) -> dict[str, str]:
    return {
        "train.batch_size": "256",
        "train.max_steps": str(steps),
        "train.report_every_steps": str(REPORT_STEPS),
        "eval": "{}",
        "decode": "{}",
    }


def steady(logdir: str) -> float:
    """The run's steps a second, once it has settled."""
    return median([record["steps_per_second"] for record in read_metrics(Path(logdir) / "train")[3:]])


def bare(steps: int) -> dict[str, Any]:
    """Steps a second of the loop alone, after its first step."""
    import jax

    import raylingvo as rl
    from raylingvo.data.pipeline import TrainInput
    from raylingvo.training.state import init_state
    from raylingvo.training.step import make_train_step

    experiment = rl.override(rl.get(EXPERIMENT), settings(steps))
    train = experiment.train
    stream = TrainInput(experiment.datasets["train"].open(), train.batch_size, train.seed)
    batches = list(itertools.islice(stream, steps))
    stream.close()
    state = init_state(experiment, batches[0])
    step = jax.jit(make_train_step(experiment), donate_argnums=0).lower(state, batches[0]).compile()
    state, _ = step(state, batches[0])
    jax.block_until_ready(state)
    start = time.monotonic()
    for batch in batches[1:]:
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    return {"steps_per_second": (steps - 1) / (time.monotonic() - start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bare", action="store_true", help="run the bare loop only")
    arguments = parser.parse_args()
    if arguments.bare:
        print(json.dumps(bare(arguments.steps)))
        return
    overrides = [f"--set={key}={value}" for key, value in settings(arguments.steps).items()]
    with tempfile.TemporaryDirectory() as folder:
        # One logdir for each round: a finished run is not repeated.
        rounds = [
            in_turn(
                {
                    "bare loop": [sys.executable, __file__, "--bare", "--steps", str(arguments.steps)],
                    "raylingvo run": [
                        *(sys.executable, "-m", "raylingvo", "run", EXPERIMENT, *overrides),
                        *("--json", "--logdir", f"{folder}/{i}"),
                    ],
                },
                rounds=1,
            )
            for i in range(arguments.rounds)
        ]
        rates = [
            {"bare loop": one["bare loop"][0]["steps_per_second"], "raylingvo run": steady(f"{folder}/{i}")}
            for i, one in enumerate(rounds)
        ]
    report(
        "runner_overhead",
        ratio=median([one["raylingvo run"] / one["bare loop"] for one in rates]),
        goal=0.97,
        ratios=[one["raylingvo run"] / one["bare loop"] for one in rates],
        steps_per_second=median([one["raylingvo run"] for one in rates]),
        bare_steps_per_second=median([one["bare loop"] for one in rates]),
    )


if __name__ == "__main__":
    main()
