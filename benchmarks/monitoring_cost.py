"""What metrics cost a run: steps/s while they are exported and scraped, against the same run while they are not.

One run, with an Evaler and a Ray of its own. Metrics are switched on and off in turns of a few seconds. Meanwhile
Trainer and Evaler export them and this process scrapes them as Prometheus would, or nobody does. All that it costs
comes again with each export, report and scrape, so these are ten times as often as by default: a cost that others on
the machine would hide can be measured, and by default it is a tenth, if it is proportional. (The SnapshotStore's go on;
they are not on the path of a step. So do Ray's own, in both kinds of turns.) Two turns, one of each, are a pair, and
the order changes from pair to pair. The rate of a turn is that between its first and its last report.

`cost_at_10x` is 1 - the median over the pairs of (rate with / rate without), and `error_at_10x` its standard error:
what else runs on the machine is in it. `cost` and `error` are what follows for a run by default. Goal: cost < 0.01, by
more than the error. `cpu_cost_at_10x` compares the processor time of the Trainer's process for a step, over all turns,
which others disturb less. Exporting all gauges of a role once, which happens every few seconds (`metrics.SECONDS`),
takes `export_microseconds`: as a share of one core that is `export_share`. At its start a run counts the FLOPs of a
train step, which takes `flops_milliseconds` here. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
from _compare import report
from monitoring_task import REPORT_SECONDS, SCRAPE_SECONDS, TIMES_AS_OFTEN, Switched, export_while

import raylingvo as rl
from raylingvo.actors import metrics
from raylingvo.experiment import Checkpoints, Snapshots
from raylingvo.monitor.exported import EXPORTED, Sample
from raylingvo.monitor.live import View
from raylingvo.monitor.metrics_log import read_metrics

EXPERIMENT = "image.digits.LeNet5"
WARM_UP_STEPS = 100
REPORT_INTERVAL = "RAY_metrics_report_interval_ms"
BY_DEFAULT = metrics.SECONDS  # before it is made less here


def experiment(switch: Path) -> rl.Experiment:
    plain = rl.get(EXPERIMENT)
    task: Any = plain.task
    settings = {
        "task": Switched(model=task.model, switch=str(switch)),
        "train.batch_size": 256,
        "train.max_steps": 10**9,
        "train.report_every_steps": 2,
        "train.snapshots": Snapshots(),
        "train.checkpoints": Checkpoints(),
        "decode": {},
    }
    return rl.override(plain, settings)


class Turns(View):
    """Starts the turns when the run has warmed up, and stops the run when they are over."""

    def __init__(self, logdir: Path, switch: Path, pairs: int, seconds: float):
        self._switch, self._pairs, self._seconds = switch, pairs, seconds
        self._train = logdir / "train"
        self._thread: threading.Thread | None = None
        self.over = False
        self.rates: dict[bool, list[float]] = {True: [], False: []}
        self.used = {True: [0.0, 0], False: [0.0, 0]}  # the Trainer's seconds of processors, and its steps
        self.export_seconds = math.nan

    def update(self, status: Mapping[str, Any]) -> None:
        if self._thread is None and status["trainer"]["step"] >= WARM_UP_STEPS:
            self._thread = threading.Thread(target=self._take_turns, daemon=True)
            self._thread.start()

    def event(self, text: str) -> None:
        print(text, file=sys.stderr)

    def close(self) -> None:
        pass

    def _take_turns(self) -> None:
        try:
            self.export_seconds = _export_seconds()
            for i in range(self._pairs):
                for export in (True, False) if i % 2 else (False, True):
                    self._turn(export)
                ratio = self.rates[True][-1] / self.rates[False][-1]
                print(f"pair {i + 1}/{self._pairs}: {ratio:.4f}", file=sys.stderr)
        finally:
            self.over = True

    def _turn(self, export: bool) -> None:
        if export:
            self._switch.touch()
        else:
            self._switch.unlink(missing_ok=True)
        start, (seconds_before, steps_before) = time.time(), self._trainer()
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            time.sleep(SCRAPE_SECONDS)
            if export:
                _scrape()
        seconds, steps = self._trainer()
        self.used[export][0] += seconds - seconds_before
        self.used[export][1] += steps - steps_before
        reports = [(record["time"], record["step"]) for record in read_metrics(self._train) if record["time"] > start]
        (first, first_step), (last, last_step) = reports[0], reports[-1]
        self.rates[export].append((last_step - first_step) / (last - first))

    def _trainer(self) -> tuple[float, int]:
        (trainer,) = (p for p in psutil.Process().children(recursive=True) if _title(p).startswith("ray::TrainerActor"))
        times = trainer.cpu_times()
        return times.user + times.system, read_metrics(self._train)[-1]["step"]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _export_seconds() -> float:
    samples = [Sample(metric.name, 1.0, "trainer", "train") for metric in EXPORTED if metric.kind == "gauge"]
    times = []
    for _ in range(100):
        start = time.perf_counter()
        metrics.export("measured", samples)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _flops_seconds() -> float:
    """Of counting those of the traced train step; on accelerators, as our C++ ops would end the count early."""
    import jax  # after the run: only its roles need it

    from raylingvo.data.host_fields import device_fields
    from raylingvo.training.flops import flops
    from raylingvo.training.state import init_state
    from raylingvo.training.step import make_train_step

    wanted = rl.get(EXPERIMENT)
    batch = next(wanted.datasets[wanted.train.dataset].train_batches(wanted.train.batch_size, 0).samples())
    state = jax.eval_shape(lambda: init_state(wanted, batch))
    jaxpr = jax.jit(make_train_step(wanted)).trace(state, device_fields(batch)).jaxpr
    times = []
    with mock.patch.object(jax, "default_backend", lambda: "tpu"):
        for _ in range(100):
            start = time.perf_counter()
            assert flops(jaxpr) is not None
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _scrape() -> None:
    import ray

    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=60) as reply:
        reply.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=60, help="of turns, one with metrics and one without")
    parser.add_argument("--seconds", type=float, default=4.0, help="that a turn lasts")
    arguments = parser.parse_args()
    os.environ[REPORT_INTERVAL] = str(int(1000 * REPORT_SECONDS))
    with tempfile.TemporaryDirectory() as folder:
        switch = Path(folder) / "export"
        switch.touch()
        export_while(switch)
        turns = Turns(Path(folder) / "run", switch, arguments.pairs, arguments.seconds)
        stop = {True: "enough", False: None}
        rl.run(experiment(switch), Path(folder) / "run", view=turns, stop_request=lambda: stop[turns.over])
    ratios = [a / b for a, b in zip(turns.rates[True], turns.rates[False], strict=True)]
    cpu = {export: seconds / steps for export, (seconds, steps) in turns.used.items()}
    cost = 1 - statistics.median(ratios)
    # Of a median: that of the mean, times sqrt(pi / 2).
    error = statistics.stdev(ratios) * math.sqrt(math.pi / 2 / len(ratios))
    report(
        "monitoring_cost",
        cost=cost / TIMES_AS_OFTEN,
        error=error / TIMES_AS_OFTEN,
        goal=0.01,
        cost_at_10x=cost,
        error_at_10x=error,
        cpu_cost_at_10x=1 - cpu[False] / cpu[True],
        pairs=len(ratios),
        steps_per_second_without=statistics.median(turns.rates[False]),
        export_microseconds=1e6 * turns.export_seconds,
        export_share=turns.export_seconds / BY_DEFAULT,
        flops_milliseconds=1e3 * _flops_seconds(),
    )


if __name__ == "__main__":
    main()
