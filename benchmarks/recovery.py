"""What a Trainer's death costs: from SIGKILL to the next finished step, against a fresh start of the role; and what
snapshots cost all the time.

Real runs of image.digits.LeNet5 on the Ray of this process. A start: from the request of the actor to its first
finished step. A recovery: from SIGKILL to the first step that the next Trainer finishes (each step is reported, with
its time). Both start a process, import JAX, compile and read data; a recovery also finds out about the death, and
fetches the state from the store. Goal: <= 1.5. Steps lost are those after the snapshot that the next Trainer goes on
from (goal: <= the interval), steps repeated those that metrics.jsonl has twice (0).

The cost of a snapshot each 100 steps is what 100 steps take with one in their midst, against the next 100 without, in
one run with a batch size of 256, the median over such pairs. Goal: < 2 %. `waiting_share` is what the Trainer itself
measures of it, of the laps that have one: for how long the next step had to wait.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from _compare import median, report

import raylingvo as rl
from raylingvo.actors import remote
from raylingvo.actors.cluster import connected
from raylingvo.actors.run import run
from raylingvo.experiment import Checkpoints, Snapshots
from raylingvo.monitor.live import View
from raylingvo.monitor.metrics_log import read_metrics

EVERY = 50  # steps from one snapshot to the next


class Events(View):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def update(self, status: Any) -> None:
        pass

    def event(self, text: str) -> None:
        print(text, file=sys.stderr)
        self.seen.append(text)

    def close(self) -> None:
        pass


class Killer:
    """Kills the Trainer each time it is half-way between two snapshots, and stops the run after the last recovery."""

    def __init__(self, logdir: Path, kills: int):
        self._logdir, self._kills = logdir, kills
        self.killed: list[tuple[float, int]] = []  # (Unix seconds, last step reported before)

    def __call__(self) -> str | None:
        """As a run asks for a reason to stop: once a second, and after each event."""
        records = read_metrics(self._logdir / "train")
        if not records or (self.killed and records[-1]["time"] <= self.killed[-1][0]):
            return None
        if len(self.killed) == self._kills:
            return "measured"
        if records[-1]["step"] < (self.killed[-1][1] if self.killed else 0) + 2 * EVERY:
            return None
        (trainer,) = [p for p in psutil.Process().children(recursive=True) if "ray::TrainerActor" in p.cmdline()[0]]
        os.kill(trainer.pid, signal.SIGKILL)
        self.killed.append((time.time(), read_metrics(self._logdir / "train")[-1]["step"]))
        return None


def measure_recovery(kills: int) -> dict[str, Any]:
    experiment = rl.override(
        rl.get("image.digits.LeNet5"),
        {
            "train.max_steps": 10**6,
            "train.report_every_steps": 1,
            "train.snapshots": Snapshots(every_steps=EVERY),
            "train.checkpoints": Checkpoints(every_seconds=None),
            "train.max_restarts": kills,
            "eval": {},
            "decode": {},
        },
    )
    started: list[float] = []
    start_trainer = remote.start_trainer

    def timed_start(*arguments: Any) -> Any:
        started.append(time.time())
        return start_trainer(*arguments)

    remote.start_trainer = timed_start
    with tempfile.TemporaryDirectory() as folder:
        logdir, view = Path(folder), Events()
        killer = Killer(logdir, kills)
        run(experiment, logdir, view=view, stop_request=killer)
        remote.start_trainer = start_trainer
        times = [record["time"] for record in read_metrics(logdir / "train")]
        steps = read_metrics(logdir / "train")[-1]["step"]  # each has its line
        lines = (logdir / "train" / "metrics.jsonl").read_text().count("\n")
    first_step = min(t for t in times if t > started[0]) - started[0]
    recoveries = [min(t for t in times if t > killed) - killed for killed, _ in killer.killed]
    resumed = [int(found[1]) for event in view.seen if (found := re.match(r"training goes on from step (\d+)", event))]
    return {
        "start_seconds": first_step,
        "recovery_seconds": recoveries,
        "steps_lost": [step - again for (_, step), again in zip(killer.killed, resumed, strict=True)],
        "steps_repeated": lines - steps,
    }


def measure_cost(pairs: int) -> dict[str, Any]:
    experiment = rl.override(
        rl.get("image.digits.LeNet5"),
        {
            "train.batch_size": 256,
            "train.max_steps": 200 * pairs + 100,
            "train.report_every_steps": 100,
            "train.snapshots": Snapshots(every_steps=200),
            "train.checkpoints": Checkpoints(every_seconds=None),
            "eval": {},
            "decode": {},
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        run(experiment, folder, view=Events())
        laps = read_metrics(Path(folder) / "train")[1:]  # the first has the start in it
    seconds = [100 / lap["steps_per_second"] for lap in laps]
    # The snapshot of step 200 is taken after the report of step 200: in the lap that ends with step 300.
    without, having = seconds[::2], seconds[1::2]
    return {
        "snapshot_cost": median([a / b for a, b in zip(having, without, strict=True)]) - 1,
        "seconds_with": having,
        "seconds_without": without,
        "waiting_share": median([lap["snapshot_seconds"] / s for lap, s in zip(laps[1::2], having, strict=True)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs, each with one fresh start (default 3)")
    parser.add_argument("--kills", type=int, default=3, help="in each run (default 3)")
    parser.add_argument("--pairs", type=int, default=12, help="of 100 steps with and without a snapshot (default 12)")
    arguments = parser.parse_args()

    with connected(None):
        found = [measure_recovery(arguments.kills) for _ in range(arguments.runs)]
        cost = measure_cost(arguments.pairs)
    starts = [one["start_seconds"] for one in found]
    recoveries = [seconds for one in found for seconds in one["recovery_seconds"]]
    report(
        "recovery",
        recovery_by_start=median(recoveries) / median(starts),
        recovery_seconds=recoveries,
        start_seconds=starts,
        snapshot_every=EVERY,
        steps_lost=[steps for one in found for steps in one["steps_lost"]],
        steps_repeated=sum(one["steps_repeated"] for one in found),
        **cost,
    )


if __name__ == "__main__":
    main()
