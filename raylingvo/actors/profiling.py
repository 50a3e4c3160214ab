"""A profile of a Trainer at work: taken by another thread of its process, of which the train loop knows nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raylingvo.errors import RequestError

# How long a profile lasts at most, whatever the number of steps: its memory grows with it.
LONGEST_SECONDS = 300.0
_GLANCE_SECONDS = 0.002
_one_at_a_time = threading.Lock()


def take(folder: Path, steps: int, status: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Writes JAX's profile of the next steps to `folder`/plugins/profile/<time>, where TensorBoard looks for it.

    status: of the Trainer: its "state", and its "step", the last that it has dispatched.
    Returns {"folder", "from_step", "steps", "seconds"}: fewer steps if training ends, or takes too long for them.
    Raises RequestError if it does not train, or if a profile is being taken.
    """
    import jax  # when the process is the Trainer's, and knows its devices

    first = status()
    if first["state"] != "training":
        raise RequestError(f"the Trainer is {first['state']}: there are no steps to profile")
    if not _one_at_a_time.acquire(blocking=False):
        raise RequestError("a profile of this run is being taken already")
    try:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # it slows the loop down, and what takes time is below it
        jax.profiler.start_trace(folder, profiler_options=options)
        try:
            first, start = status(), time.monotonic()
            last = first
            while last["state"] == "training" and last["step"] < first["step"] + steps:
                if time.monotonic() - start > LONGEST_SECONDS:
                    break
                time.sleep(_GLANCE_SECONDS)
                last = status()
            seconds = time.monotonic() - start
        finally:
            jax.profiler.stop_trace()
    finally:
        _one_at_a_time.release()
    return {
        "folder": str(max((folder / "plugins" / "profile").iterdir())),  # of its second, which is its name
        "from_step": first["step"],
        "steps": last["step"] - first["step"],
        "seconds": seconds,
    }
