"""What is still to come in a run, answers of actors and times, and what is to be done then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray.exceptions import RayError

from raylingvo.actors.calls import fetch

Handler = Callable[[Any], None]


def ignored(_error: RayError) -> None:
    """For a question to an actor whose death others deal with."""


class Agenda:
    """For one thread: all is done by `wait` and `do_what_is_due`."""

    def __init__(self) -> None:
        self._pending: dict[ray.ObjectRef, tuple[Handler, Handler | None]] = {}  # what answers, and errors, are for
        self._later: list[tuple[float, Callable[[], None]]] = []  # (when, what)

    def watch(self, ref: ray.ObjectRef, handle: Handler, failed: Handler | None = None) -> None:
        """Calls `handle(answer)` when it is there; or `failed(error)`, if it is a RayError, which None raises."""
        self._pending[ref] = handle, failed

    def asked(self, handle: Handler) -> bool:
        """Whether an answer for this handler is still to come."""
        return any(other == handle for other, _ in self._pending.values())

    def forget(self, handle: Handler) -> None:
        """No answer that is still to come is of interest to this handler."""
        self._pending = {ref: what for ref, what in self._pending.items() if what[0] != handle}

    def drop(self, refs: Iterable[ray.ObjectRef]) -> None:
        """None of these answers is of interest."""
        for ref in refs:
            self._pending.pop(ref, None)

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, act))

    def wait(self, seconds: float) -> None:
        """Until there is an answer, which is dealt with; at most so long."""
        ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=seconds)
        for ref in ready:
            handle, failed = self._pending.pop(ref)
            try:
                answer = fetch(ref)
            except RayError as error:
                if failed is None:
                    raise
                failed(error)
            else:
                handle(answer)

    def do_what_is_due(self, *, hurry: bool) -> None:
        """hurry: all of it is."""
        now = time.monotonic()
        due = [act for when, act in self._later if when <= now or hurry]
        self._later = [(when, act) for when, act in self._later if act not in due]
        for act in due:
            act()
