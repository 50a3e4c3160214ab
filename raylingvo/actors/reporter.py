"""What the Trainer says of itself: reports written off the training thread, and where its time goes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from raylingvo.monitor.metrics_log import MetricsLog, read_metrics

# Reports that may wait for a slow disk: a few MB, and half an hour if there is one every two seconds.
_MAX_PENDING = 1000


class Reporter:
    """Writes train/metrics.jsonl in order, in a thread of its own: a slow disk delays no step.

    Only when `_MAX_PENDING` reports wait for the disk does the next one wait too. A failed write is raised by the first
    call after it has failed, at the latest by `close`. `last` is the newest report. What `unwritten` gives travels with
    every snapshot: the Trainer that resumes from one writes what the one that took it could not.
    """

    def __init__(self, directory: Path, *, last_step: int, reports: Sequence[dict[str, Any]] = ()):
        """reports: what `unwritten` gave at `last_step`."""
        self._log = MetricsLog(directory, last_step=last_step)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="report")
        self._pending: deque[tuple[dict[str, Any], Future[None]]] = deque()  # in the order of the reports
        self.last = reports[-1] if reports else None
        written = {record["step"] for record in read_metrics(directory)}
        for report in reports:
            if report["step"] not in written:
                self._submit(report)

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metrics of the steps since the last report."""
        while self._pending and (self._pending[0][1].done() or len(self._pending) >= _MAX_PENDING):
            self._pending.popleft()[1].result()
        self.last = {"step": step, "time": time.time(), "metrics": dict(metrics)}
        self._submit(self.last)

    def unwritten(self) -> list[dict[str, Any]]:
        """The reports that may not be on disk yet, in order, and the last one in any case."""
        reports = [report for report, write in self._pending if not write.done()]
        return reports or ([self.last] if self.last else [])

    def close(self) -> None:
        """Waits until all reports are on disk, and ends the thread; raises the error of a write."""
        try:
            while self._pending:
                self._pending.popleft()[1].result()
        finally:
            self._executor.shutdown()
            self._log.close()

    def _submit(self, report: dict[str, Any]) -> None:
        write = self._executor.submit(self._log.write, report["step"], report["metrics"], time=report["time"])
        self._pending.append((report, write))


class StepClock:
    """Where the time since the last report went: steps a second, waiting for input, and copying snapshots."""

    def __init__(self) -> None:
        self._examples = 0  # of all steps
        self.first_step_time: float | None = None  # Unix seconds
        self._first_step = 0
        self._begin(0)

    def first_step(self, step: int) -> None:
        """The first step of this process has finished: what it took to get there is not counted as speed."""
        self.first_step_time, self._first_step, self._first_examples = time.time(), step, self._examples
        self._begin(step)
        self._first_end = self._start

    def took(self, examples: int) -> None:
        """A step took so many examples."""
        self._examples += examples

    def waited(self, seconds: float) -> None:
        """The loop waited so long for a batch."""
        self._waited += seconds

    def copied(self, seconds: float) -> None:
        """The loop stood still so long while a snapshot was copied."""
        self._copies.append(seconds)

    def lap(self, step: int) -> dict[str, float]:
        """Rates since the last lap, as metrics."""
        rates = self.rates(step)
        if self._copies:
            rates["snapshot_seconds"] = sum(self._copies) / len(self._copies)
        self._begin(step)
        return rates

    def rates(self, step: int) -> dict[str, float]:
        """Rates since the last lap; empty before there is one step."""
        elapsed = time.monotonic() - self._start
        if step <= self._start_step or self.first_step_time is None:
            return {}
        return {
            **_per_second(step - self._start_step, self._examples - self._start_examples, elapsed),
            "input_wait_fraction": min(self._waited / elapsed, 1.0),
        }

    def overall(self, step: int) -> dict[str, float | None]:
        """Rates from the first finished step to now."""
        if self.first_step_time is None or step <= self._first_step:
            return {"steps_per_second": None, "examples_per_second": None}
        examples = self._examples - self._first_examples
        return dict(_per_second(step - self._first_step, examples, time.monotonic() - self._first_end))

    def _begin(self, step: int) -> None:
        self._start, self._start_step, self._start_examples = time.monotonic(), step, self._examples
        self._waited = 0.0
        self._copies: list[float] = []


def _per_second(steps: int, examples: int, seconds: float) -> dict[str, float]:
    return {"steps_per_second": steps / seconds, "examples_per_second": examples / seconds}
