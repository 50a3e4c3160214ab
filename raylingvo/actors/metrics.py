"""How roles export what they know to Prometheus: through Ray, whose agent on each machine is what Prometheus asks."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ray.util import metrics as ray_metrics

from raylingvo.monitor.exported import BY_NAME, CAUSES, Cause, Sample, role_and_dataset, samples

# A process tells Ray's agent every 10 s what was set since, and the agent forgets a gauge that was not set for 20 s
# (Ray 2.60). So what a role that has ended had to say soon has an end too, and what still holds is set again.
SECONDS = 5.0
_END_SECONDS = 5.0  # for which the thread is waited for
# For a comparison without.
SWITCH = "RAYLINGVO_EXPORT_METRICS"


def environment() -> dict[str, str]:
    """What roles are to have of this process's environment."""
    return {name: os.environ[name] for name in (SWITCH, "RAYLINGVO_PEAK_FLOPS") if name in os.environ}


def enabled() -> bool:
    return os.environ.get(SWITCH, "1") != "0"


@functools.cache
def _metric(name: str) -> Any:
    """The metric, of this process."""
    declared = BY_NAME[name]
    make = ray_metrics.Counter if declared.kind == "counter" else ray_metrics.Gauge
    return make(declared.full_name, f"{declared.help} [{declared.unit or 'no unit'}]", declared.tags)


def export(run: str, found: Iterable[Sample]) -> None:
    """Sets gauges."""
    if enabled():
        for sample in found:
            _metric(sample.name).set(sample.value, {"run": run, "role": sample.role, "dataset": sample.dataset})


@contextlib.contextmanager
def exported(run: str, current: Callable[[], Iterable[Sample]]) -> Iterator[None]:
    """Meanwhile, a thread sets gauges to what `current` gives, again and again.

    What goes wrong in that thread is not the role's failure: it is logged once, and nothing is exported any more.
    """
    if not enabled():
        yield
        return
    ended = threading.Event()

    def pulse() -> None:
        try:
            while True:
                if enabled():
                    export(run, current())
                if ended.wait(SECONDS):
                    return
        except Exception:
            logging.getLogger(__name__).exception("metrics are not exported any more")

    thread = threading.Thread(target=pulse, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_END_SECONDS)


class Sometimes:
    """Whether it is time again, for one that is asked more often than something is to be done."""

    def __init__(self, seconds: float | None = None):
        """seconds: None for those between two exports."""
        self._seconds = SECONDS if seconds is None else seconds
        self._next = -float("inf")

    def __call__(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


class RunMetrics:
    """What only the driver knows, since it outlives all roles: whether training goes on, and how often roles died."""

    def __init__(self, run: str, dataset: str, logdir: Path):
        """dataset: that is trained on."""
        self._run = run
        self._dataset = dataset
        self._logdir = logdir
        self._due = Sometimes()
        self._samples: list[Sample] = []
        self._started = time.time()
        self._disk_refused = False
        self._step: int | None = None
        self._step_changed = time.monotonic()

    def update(self, step: int, *, training: bool) -> list[Sample]:
        """Exports, and returns, where the run stands; as often as one likes. training: it has not come to its end."""
        if step != self._step:
            self._step, self._step_changed = step, time.monotonic()
        if not self._due():
            return self._samples
        now = time.time()
        self._samples = [*samples("driver", "", {"elapsed_seconds": now - self._started})]
        if training:
            values = {
                "step_age_seconds": time.monotonic() - self._step_changed,
                "checkpoint_age_seconds": self._checkpoint_age(now),
            }
            self._samples += samples("trainer", self._dataset, values)
        export(self._run, self._samples)
        return self._samples

    def restarted(self, name: str, cause: Cause) -> None:
        """name: of the role, as the live view has it."""
        assert cause in CAUSES
        role, dataset = role_and_dataset(name)
        if enabled():
            tags = {"run": self._run, "role": role, "dataset": self._dataset if role == "trainer" else dataset}
            _metric("restarts").inc(1, {**tags, "cause": cause})

    def _checkpoint_age(self, now: float) -> float | None:
        """None if the disk refuses to tell, which is logged once: it must not be this that ends a run."""
        try:
            return max(0.0, now - max(self._started, self._newest_checkpoint()))
        except OSError:
            if not self._disk_refused:
                logging.getLogger(__name__).exception("the age of the newest checkpoint is not known")
            self._disk_refused = True
            return None

    def _newest_checkpoint(self) -> float:
        """Unix seconds; 0 if there is none."""
        newest, paths = 0.0, []
        with contextlib.suppress(FileNotFoundError):  # there are none yet
            paths = list((self._logdir / "train" / "checkpoints").iterdir())
        for path in paths:
            if path.name.isdecimal():
                with contextlib.suppress(FileNotFoundError):  # it has gone meanwhile
                    newest = max(newest, path.stat().st_mtime)
        return newest
