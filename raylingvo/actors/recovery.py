"""Whether, and how soon, a role that ended badly is started again. Pure: no clock, no Ray."""

from __future__ import annotations

from typing import NamedTuple

FIRST_DELAY = 1.0  # seconds; nothing is waited for before the first restart, and twice as long before each further one
LONGEST_DELAY = 60.0


class Failure(NamedTuple):
    """What ended a life, to be compared with what ended the one before."""

    step: int  # that was being worked on
    error: str


class Recovery:
    """Counts the lives of one role.

    The budget is of restarts without progress: a run of weeks on machines that are taken away now and then goes on,
    one that gets nowhere ends. The same error at the same step twice is not bad luck, and ends it at once.
    """

    def __init__(self, max_restarts: int):
        """max_restarts: how often in a row the role is started again without having got further."""
        self._max_restarts = max_restarts
        self._in_a_row = 0
        self._safe_step = -1
        self._last: Failure | None = None
        self.restarts = 0  # in all

    def repeated(self, failure: Failure | None) -> bool:
        """Whether it is the failure that ended the life before."""
        return failure is not None and failure == self._last

    def delay(self, safe_step: int, failure: Failure | None = None) -> float | None:
        """Counts a bad end; seconds to wait before the role is started again, or None: not any more.

        safe_step: what the next life goes on from, or the last step whose result is recorded.
        failure: None if the process died, and could not tell.
        """
        if self.repeated(failure):
            return None
        self._last = failure
        if safe_step > self._safe_step:
            self._safe_step, self._in_a_row = safe_step, 0
        if self._in_a_row >= self._max_restarts:
            return None
        self._in_a_row += 1
        self.restarts += 1
        return 0.0 if self._in_a_row == 1 else min(FIRST_DELAY * 2 ** (self._in_a_row - 2), LONGEST_DELAY)
