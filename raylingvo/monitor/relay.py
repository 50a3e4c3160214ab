"""What a run says about itself, kept for those who ask from other processes, again and again, for what is new."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypedDict

from raylingvo.monitor.live import View
from raylingvo.monitor.status import Status

_EVENTS = 200  # of those that come late, nobody reads more; all of them are in control/driver.log
_FAREWELL_SECONDS = 5.0  # for followers to hear of the end; those that have died are waited for in vain


class News(TypedDict):
    number: int  # to ask with for what is newer
    events: Sequence[str]
    status: Status | None  # the newest; None if there is none yet
    begun: bool  # the request has proved right
    ended: Any  # what `end` was given; None while the run goes on


class Relay(View):
    """A view for any number of followers, which need not have been there from the beginning. For several threads.

    followers: those that there are before they ask; see `news`.
    """

    def __init__(self, followers: Iterable[str] = ()) -> None:
        self._changed = threading.Condition()
        self._number = 0  # of the newest change
        self._events: deque[tuple[int, str]] = deque(maxlen=_EVENTS)
        self._status: Status | None = None
        self._begun = False
        self._ended: Any = None
        self._followers = set(followers)

    def update(self, status: Status) -> None:
        with self._change():
            self._status = status

    def event(self, text: str) -> None:
        with self._change() as number:
            self._events.append((number, text))

    def close(self) -> None:
        """Followers hear of the end by `end`."""

    def begin(self) -> None:
        with self._change():
            self._begun = True

    def end(self, ended: Any) -> None:
        """There will be no other news. Returns when all followers have left, or after some seconds."""
        with self._change():
            self._ended = ended
        with self._changed:
            self._changed.wait_for(lambda: not self._followers, _FAREWELL_SECONDS)

    def news(self, seen: int, timeout: float, follower: str | None = None) -> News:
        """What has come after number `seen` (0: everything), waited for at most `timeout` seconds.

        follower: a name of one who will hear of the end, whenever it asks, until it leaves.
        """
        with self._changed:
            if follower is not None:
                self._followers.add(follower)
            self._changed.wait_for(lambda: self._number > seen or self._ended is not None, timeout)
            return {
                "number": self._number,
                "events": [text for number, text in self._events if number > seen],
                "status": self._status,
                "begun": self._begun,
                "ended": self._ended,
            }

    @contextlib.contextmanager
    def _change(self) -> Iterator[int]:
        """The number of a change that is being made."""
        with self._changed:
            self._number += 1
            yield self._number
            self._changed.notify_all()

    def leave(self, follower: str) -> None:
        with self._changed:
            self._followers.discard(follower)
            self._changed.notify_all()
