"""From the command to the first finished step: `raylingvo run` against a minimal script.

The minimal script does `ray.init()`, one actor, and in it the same first step: the same experiment's state, step and
batch, without logdir, store, metrics or command line. Goal: a ratio <= 1.5. Also: `raylingvo --help` in seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from typing import Any

from _compare import last_json_line, median, report

EXPERIMENT = "image.digits.LeNet5"


def first_step() -> float:
    """Takes the first step of the experiment; the Unix time at which it has finished."""
    import jax

    import raylingvo as rl
    from raylingvo.data.pipeline import TrainInput
    from raylingvo.training.state import init_state
    from raylingvo.training.step import make_train_step

    experiment = rl.get(EXPERIMENT)
    data = experiment.datasets[experiment.train.dataset]
    stream = TrainInput(data.train_batches(experiment.train.batch_size, experiment.train.seed))
    batch = next(stream)
    state, _ = jax.jit(make_train_step(experiment), donate_argnums=0)(init_state(experiment, batch), batch)
    jax.block_until_ready(state)
    stream.close()
    return time.time()


def minimal() -> dict[str, Any]:
    """Seconds from the start of this process to the first step in one Ray actor."""
    import psutil
    import ray

    ray.init(address="local", log_to_driver=False, logging_level="ERROR")

    class Actor:
        def first_step(self) -> float:
            return first_step()

    actor = ray.remote(Actor).remote()
    end = ray.get(actor.first_step.remote())
    return {"first_step_seconds": end - psutil.Process().create_time()}


def help_seconds() -> float:
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "raylingvo", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minimal", action="store_true", help="run the minimal script only")
    arguments = parser.parse_args()
    if arguments.minimal:
        print(json.dumps(minimal()))
        return
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(arguments.rounds):
            print(f"round {i + 1}/{arguments.rounds}", file=sys.stderr)
            plain = last_json_line([sys.executable, __file__, "--minimal"])
            ours = last_json_line(
                [
                    *(sys.executable, "-m", "raylingvo", "run", EXPERIMENT, "--json"),
                    *("--set=train.max_steps=2", "--logdir", f"{folder}/{i}"),
                ]
            )
            pairs.append((ours["first_step_seconds"], plain["first_step_seconds"]))
    report(
        "startup",
        ratio=median([ours / plain for ours, plain in pairs]),
        goal=1.5,
        ratios=[ours / plain for ours, plain in pairs],
        first_step_seconds=median([ours for ours, _ in pairs]),
        minimal_first_step_seconds=median([plain for _, plain in pairs]),
        help_seconds=median([help_seconds() for _ in range(5)]),
    )


if __name__ == "__main__":
    main()
