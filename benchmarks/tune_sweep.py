"""What a sweep costs besides training, and what ASHA saves.

`raylingvo tune sweep image.digits.LeNet5`, 16 trials of 200 steps, two at a time: the wall time of the whole command,
start of Ray, evaluations, checkpoints, pictures and all, over that of the same steps in a bare loop, back to back in
two processes that are warm: what is compiled is compiled. Goal: <= 1.3. Which of the two goes first alternates.

Then the same sixteen trials evaluated every 10 steps, once whole and once under ASHA: the share of the steps that ASHA
takes (goal: <= 40 %), and how much worse its best value is (goal: <= 0.01 of an accuracy).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _compare import last_json_line, report

TRIALS, STEPS, PROCESSES = 16, 200, 2
SPACE = "learner.learning_rate=loguniform(1e-4,1e-1)"


def worker() -> None:
    """Its share of the steps, when it is told to begin."""
    import jax

    import raylingvo as rl
    from raylingvo.data.pipeline import TrainInput
    from raylingvo.parallel.hosts import ALONE
    from raylingvo.parallel.layout import ONE_DEVICE
    from raylingvo.training.program import TrainProgram, Wish
    from raylingvo.training.state import init_state

    experiment = rl.get("image.digits.LeNet5")
    batches = experiment.datasets["train"].train_batches(experiment.train.batch_size, 0)
    samples, data = list(batches.samples()), TrainInput(batches)
    program = TrainProgram(experiment, ONE_DEVICE, ALONE)
    program.compile(init_state(experiment, *samples), samples)

    def train(steps: int) -> None:
        state, before = init_state(experiment, *samples), None
        for _ in range(steps):
            state, outcome = program(state, next(data), Wish())
            if before is not None:
                jax.block_until_ready(before)  # never more than one step ahead, as the Trainer
            before = outcome.nonfinite_in_a_row
        jax.block_until_ready(state)

    train(10)
    print("warm", flush=True)
    sys.stdin.readline()
    for _ in range(TRIALS // PROCESSES):
        train(STEPS)
    print("done", flush=True)
    data.close()


def bare_loops() -> float:
    """Seconds of all the steps in two warm processes."""
    command = [sys.executable, __file__, "--worker"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    workers: list[Any] = [subprocess.Popen(command, env=environment, **pipes) for _ in range(PROCESSES)]
    for process in workers:
        assert process.stdout.readline() == "warm\n"
    start = time.monotonic()
    for process in workers:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in workers:
        assert process.stdout.readline() == "done\n"
    seconds = time.monotonic() - start
    for process in workers:
        process.wait()
    return seconds


def sweep(*options: str) -> tuple[float, dict[str, Any]]:
    """Seconds of the command, and its result."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "raylingvo", "tune", "sweep", "image.digits.LeNet5", "--param", SPACE]
        command += ["--metric", "test/accuracy", "--mode", "max", "--samples", str(TRIALS)]
        command += ["--max-steps", str(STEPS), "--concurrency", str(PROCESSES), *options]
        start = time.monotonic()
        result = last_json_line([*command, "--logdir", str(Path(scratch) / "sweep"), "--json"])
        return time.monotonic() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker()
        return
    bare, whole = [], []
    for i in range(args.rounds):
        for contender in ("bare", "sweep") if i % 2 == 0 else ("sweep", "bare"):
            print(f"round {i + 1}/{args.rounds}: {contender}", file=sys.stderr)
            bare.append(bare_loops()) if contender == "bare" else whole.append(sweep()[0])
    often = "--set", "train.snapshots.every_steps=10"
    _, full = sweep(*often)
    _, asha = sweep(*often, "--scheduler", "asha")
    report(
        "tune_sweep",
        ratio=sum(whole) / sum(bare),
        sweep_seconds=whole,
        bare_seconds=bare,
        asha_share_of_steps=asha["steps"] / (TRIALS * STEPS),
        asha_worse_by=full["best"]["test/accuracy"] - asha["best"]["test/accuracy"],
        full_best=full["best"]["test/accuracy"],
        asha_trials=asha["trials"],
    )


if __name__ == "__main__":
    main()
