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
_one_at_a_time = threading.Lock()


class DoneSteps:
    """The last step that the devices are known to be done with: one thread counts, and never waits; others wait."""

    def __init__(self) -> None:
        self.last = 0
        self._ended = False
        self._waiting: list[tuple[int, threading.Event]] = []

    def reach(self, step: int) -> None:
        self.last = step
        if self._waiting:  # a step costs this look; that a list grows and shrinks needs no lock
            self._tell()

    def end(self) -> None:
        """No step will follow."""
        self._ended = True
        self._tell()

    def wait(self, step: int, seconds: float) -> None:
        """Returns when `step` is done, when none will follow, or after so long."""
        waiting = step, threading.Event()
        self._waiting.append(waiting)
        if self.last < step and not self._ended:  # looked at now, since it may have come before it was waited for
            waiting[1].wait(seconds)
        self._waiting.remove(waiting)

    def _tell(self) -> None:
        for step, come in tuple(self._waiting):
            if step <= self.last or self._ended:
                come.set()


def take(folder: Path, steps: int, status: Callable[[], Mapping[str, Any]], done: DoneSteps) -> dict[str, Any]:
    """Writes JAX's profile of the next steps to `folder`/plugins/profile/<time>, where TensorBoard looks for it.

    status: of the Trainer: its "state", and its "step", the last that it has dispatched, of which `done` are done.
    Returns {"folder", "from_step", "steps", "seconds"}: from the first to the last operation of the `steps` steps after
    `from_step` all is in the profile. Fewer than wanted if training ends, or takes too long for them.
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
            start = time.monotonic()
            begin = status()["step"] + 1  # the devices may be at work on it, and it not be counted yet
            done.wait(begin + steps, LONGEST_SECONDS)
            end, seconds = done.last, time.monotonic() - start
        finally:
            jax.profiler.stop_trace()
    finally:
        _one_at_a_time.release()
    return {
        "folder": str(max((folder / "plugins" / "profile").iterdir())),  # of its second, which is its name
        "from_step": begin,
        "steps": max(0, end - begin),
        "seconds": seconds,
    }
