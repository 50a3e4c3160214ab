"""Steady steps/s of `raylingvo run` with evaluation off, against the same jitted step in a bare loop.

The bare loop is one process without Ray; its batches are in memory before it starts. The run is a whole one, with the
default policies of reports, snapshots and checkpoints. Every few seconds all its processes are stopped (SIGSTOP) while
the bare loop takes 40 steps: shared machines change their speed by 10 % from one second to the next, and only many
turns average that out. The run's rate is its steps / the seconds in which it was not stopped, from its first
report (after the start-up of Ray and of the checkpoint library) to its last; the bare loop's its steps / its seconds.
`ratio` is the first / the second; `ratios` the same between two reports. Goal: >= 0.97.

The runner lets its roles keep their memory between steps (actors/memory.py), which a plain script does not, so on CPUs
`ratio` can be above 1. `ratio_same_memory` is against a second bare loop that keeps its memory too: what the roles
themselves cost. There the bound is 1: the runner adds to the same steps on the same cores. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from _compare import report

import raylingvo as rl
from raylingvo.actors import memory
from raylingvo.experiment import Checkpoints, Snapshots
from raylingvo.monitor.live import View
from raylingvo.monitor.metrics_log import read_metrics

EXPERIMENT = "image.digits.LeNet5"
TURN_STEPS = 40
RUN_SECONDS = 4.0  # Ray's timers that expire while it is stopped all run when it goes on: not too often
REPORT_STEPS = 300


def experiment(reports: int) -> rl.Experiment:
    settings = {
        "train.batch_size": 256,
        "train.max_steps": reports * REPORT_STEPS + 1,  # the last report is not at the end, where the run is saved
        "train.report_every_steps": REPORT_STEPS,
        "train.snapshots": Snapshots(),
        "train.checkpoints": Checkpoints(),
        "eval": {},
        "decode": {},
    }
    return rl.override(rl.get(EXPERIMENT), settings)


def bare_loop() -> None:
    """For each line on stdin takes TURN_STEPS steps and prints the seconds."""
    import jax

    from raylingvo.data.pipeline import TrainInput
    from raylingvo.training.state import init_state
    from raylingvo.training.step import make_train_step

    exp = experiment(1)
    stream = TrainInput(exp.datasets["train"].train_batches(exp.train.batch_size, exp.train.seed))
    batches = list(itertools.islice(stream, 20))
    stream.close()
    state = init_state(exp, batches[0])
    step = jax.jit(make_train_step(exp), donate_argnums=0).lower(state, batches[0]).compile()
    feed = itertools.cycle(batches)
    for _ in sys.stdin:
        start = time.perf_counter()
        for batch in itertools.islice(feed, TURN_STEPS):
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        print(time.perf_counter() - start, flush=True)


class BareLoop:
    """`bare_loop` in a process of its own."""

    def __init__(self, environment: Mapping[str, str]):
        command = [sys.executable, __file__, "--bare"]
        env = {**os.environ, **environment}
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid = self._process.pid
        for _ in range(4):  # touches its memory
            self.turn()

    def turn(self) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Duel(View):
    """Stops the run and lets the bare loops take a turn, whenever the run shows its state."""

    def __init__(self, logdir: Path):
        self._train = logdir / "train"
        self._loops = [BareLoop({}), BareLoop(memory.KEEP)]
        # Unix seconds from and to which the run stood still, seconds of each loop's turn.
        self._turns: list[tuple[float, float, list[float]]] = []

    def update(self, status: Any) -> None:
        if not status["trainer"]["step"] or status["trainer"]["state"] != "training":
            return
        if self._turns and time.time() < self._turns[-1][1] + RUN_SECONDS:
            return
        loops = {loop.pid for loop in self._loops}
        others = [p for p in psutil.Process().children(recursive=True) if p.pid not in loops]
        _signal(others, signal.SIGSTOP)
        start = time.time()
        try:
            # In either order by turns: the first after the run has stopped may find another machine.
            order = [0, 1] if len(self._turns) % 2 else [1, 0]
            took = {k: self._loops[k].turn() for k in order}
        finally:
            end = time.time()
            _signal(others, signal.SIGCONT)
        self._turns.append((start, end, [took[k] for k in range(2)]))

    def event(self, text: str) -> None:
        print(text, file=sys.stderr)

    def close(self) -> None:
        """Ends the bare loops."""
        for loop in self._loops:
            loop.close()

    def rates(self) -> list[list[float]]:
        """[the run's, each bare loop's] seconds a step between one report and the next."""
        reports = [(record["time"], record["step"]) for record in read_metrics(self._train)[:-1]]
        found = []
        for (start, first), (end, last) in itertools.pairwise(reports):
            # A report is written while the run goes on: no turn has a border inside.
            turns = [turn for turn in self._turns if start <= turn[0] < end]
            if not turns:
                sys.exit("the run was faster from report to report than the turns: raise REPORT_STEPS")
            stopped = sum(stop - begin for begin, stop, _ in turns)
            bare = [
                sum(seconds) / (len(turns) * TURN_STEPS) for seconds in zip(*(turn[2] for turn in turns), strict=True)
            ]
            found.append([(end - start - stopped) / (last - first), *bare])
        return found


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", type=int, default=8, help=f"of {REPORT_STEPS} steps each; the first is a warm-up")
    parser.add_argument("--bare", action="store_true", help="the bare loop only, a turn for each line on stdin")
    arguments = parser.parse_args()
    if arguments.bare:
        bare_loop()
        return
    with tempfile.TemporaryDirectory() as folder, Duel(Path(folder)) as duel:
        rl.run(experiment(arguments.reports), folder, view=duel)
        rates = duel.rates()
    run, bare, bare_same_memory = (statistics.fmean(seconds) for seconds in zip(*rates, strict=True))
    report(
        "runner_overhead",
        ratio=bare / run,
        goal=0.97,
        ratios=[round(b / r, 3) for r, b, _ in rates],
        ratio_same_memory=bare_same_memory / run,
        ratios_same_memory=[round(b / r, 3) for r, _, b in rates],
        steps_per_second=1 / run,
        bare_steps_per_second=1 / bare,
    )


if __name__ == "__main__":
    main()
