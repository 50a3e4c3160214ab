"""What metrics cost a run: steps/s with them exported and scraped, against the same run without.

Two runs, each with an Evaler and a Ray of its own. One exports its metrics, as runs do, and is asked for them as
Prometheus would; the other has RAYLINGVO_EXPORT_METRICS=0. They take turns of a few seconds, in which the other is
stopped (SIGSTOP): two turns, one of each, are a pair, and the order changes from pair to pair. The rate of a turn is
that between its first and its last report. `cost` is 1 - the median over the pairs of (rate with / rate without);
`error` its standard error. Goal: cost < 0.01. `cpu_cost` compares the processor time that a step takes in all turns,
of all processes of the run, Ray's too: others on the machine disturb it less. Exporting all gauges of a role once,
which happens every 5 s, takes `export_microseconds`: as a share of one core that is `export_share`. Prints one JSON
line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from _compare import report

import raylingvo as rl
from raylingvo.actors import metrics
from raylingvo.experiment import Checkpoints, Snapshots
from raylingvo.monitor.exported import EXPORTED, Sample
from raylingvo.monitor.live import View
from raylingvo.monitor.metrics_log import read_metrics

EXPERIMENT = "image.digits.LeNet5"
TURN_SECONDS = 4.0
WARM_UP_STEPS = 100


def experiment() -> rl.Experiment:
    settings = {
        "train.batch_size": 256,
        "train.max_steps": 10**9,
        "train.report_every_steps": 5,
        "train.snapshots": Snapshots(),
        "train.checkpoints": Checkpoints(),
        "decode": {},
    }
    return rl.override(rl.get(EXPERIMENT), settings)


class Child(View):
    """Tells the parent where its Ray can be asked for metrics, and what an export takes."""

    def __init__(self) -> None:
        self._told = False

    def update(self, status: Any) -> None:
        if self._told or status["trainer"]["step"] < WARM_UP_STEPS:
            return
        self._told = True
        import ray

        node = ray.nodes()[0]
        samples = [Sample(metric.name, 1.0, "trainer", "train") for metric in EXPORTED if metric.kind == "gauge"]
        metrics.export("measured", samples)
        start = time.perf_counter()
        for _ in range(100):
            metrics.export("measured", samples)
        seconds = (time.perf_counter() - start) / 100
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        print(json.dumps({"url": url, "export_seconds": seconds}), flush=True)

    def event(self, text: str) -> None:
        print(text, file=sys.stderr)

    def close(self) -> None:
        pass


class Run:
    """A run in a process of its own, which stands still but for its turns."""

    def __init__(self, logdir: Path, *, export: bool):
        environment = {**os.environ, metrics.SWITCH: str(int(export))}
        command = [sys.executable, __file__, "--logdir", str(logdir)]
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("the run has ended before its time")
        told = json.loads(line)
        self.export_seconds: float = told["export_seconds"]
        self._url: str | None = told["url"] if export else None
        self._train = logdir / "train"
        self._signal(signal.SIGSTOP)
        self._begin = self._used()

    def turn(self) -> float:
        """Steps a second."""
        start = time.time()
        self._signal(signal.SIGCONT)
        asked = threading.Thread(target=self._ask)
        asked.start()
        time.sleep(TURN_SECONDS)
        asked.join()
        self._signal(signal.SIGSTOP)
        end = time.time()
        # The first report after it has gone on is of steps before, too.
        inside = [
            (record["time"], record["step"]) for record in read_metrics(self._train) if start < record["time"] < end
        ]
        if len(inside) < 3:
            sys.exit("too few reports in a turn: lower train.report_every_steps")
        (first, first_step), (last, last_step) = inside[0], inside[-1]
        return (last_step - first_step) / (last - first)

    def cpu_seconds(self) -> float:
        """A step, in all turns."""
        (seconds, steps), (seconds_before, steps_before) = self._used(), self._begin
        return (seconds - seconds_before) / (steps - steps_before)

    def _used(self) -> tuple[float, int]:
        """Seconds of processors, of all processes of the run; the step of the last report."""
        seconds = 0.0
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                seconds += times.user + times.system
        return seconds, read_metrics(self._train)[-1]["step"]

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(60)
        self._process.kill()

    def _ask(self) -> None:
        if self._url is not None:
            with urllib.request.urlopen(self._url, timeout=TURN_SECONDS) as reply:
                if b"ray_raylingvo_elapsed_seconds" not in reply.read():
                    print("not exported yet", file=sys.stderr)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _processes(self) -> list[psutil.Process]:
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]


@contextlib.contextmanager
def runs(folder: Path) -> Iterator[tuple[Run, Run]]:
    with contextlib.ExitStack() as opened:
        exporting = opened.enter_context(contextlib.closing(Run(folder / "with", export=True)))
        yield exporting, opened.enter_context(contextlib.closing(Run(folder / "without", export=False)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=40, help=f"of turns of {TURN_SECONDS:g} s")
    parser.add_argument("--logdir", help="the run only, in this folder")
    arguments = parser.parse_args()
    if arguments.logdir:
        rl.run(experiment(), arguments.logdir, view=Child())
        return
    ratios, rates = [], []
    with tempfile.TemporaryDirectory() as folder, runs(Path(folder)) as (exporting, silent):
        for i in range(arguments.pairs):
            order = (exporting, silent) if i % 2 else (silent, exporting)
            rate = {run: run.turn() for run in order}
            ratios.append(rate[exporting] / rate[silent])
            rates.append(rate[silent])
            print(f"pair {i + 1}/{arguments.pairs}: {ratios[-1]:.4f}", file=sys.stderr)
        seconds = exporting.export_seconds
        cpu_cost = 1 - silent.cpu_seconds() / exporting.cpu_seconds()
    spread = statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.nan
    report(
        "monitoring_cost",
        cost=1 - statistics.median(ratios),
        error=1.2533 * spread,  # of a median: the mean's, times sqrt(pi / 2)
        goal=0.01,
        mean_cost=1 - statistics.fmean(ratios),
        cpu_cost=cpu_cost,
        pairs=len(ratios),
        steps_per_second_without=statistics.median(rates),
        export_microseconds=1e6 * seconds,
        export_share=seconds / metrics.SECONDS,
    )


if __name__ == "__main__":
    main()
