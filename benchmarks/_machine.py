"""What benchmarks ask of the machine: how many bytes processes have written, and what a copy in memory costs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

import numpy as np
import psutil
from _compare import median


def written_bytes(processes: Iterable[psutil.Process]) -> int:
    """The bytes that the processes have written to disk since they began, as the kernel counts them.

    One that has ended, or may not be asked, counts as 0.
    """
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += process.io_counters().write_bytes
    return total


def memcpy_seconds(mebibytes: int) -> float:
    """The median of five copies between two warm buffers of this size, by one thread."""
    source, target = (np.ones(mebibytes << 20, np.uint8) for _ in range(2))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return median(times)
