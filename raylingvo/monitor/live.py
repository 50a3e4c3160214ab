"""The live view of a run: a table of roles on a terminal, plain lines elsewhere. See status.py for what it shows."""

from __future__ import annotations

import abc
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from rich.console import Console

from raylingvo.monitor.status import Status

Clock = Callable[[], float]  # seconds


class View(abc.ABC):
    """Shows a run while it goes on; a context manager, so that the terminal is restored whatever happens.

    All methods are for one thread.
    """

    @abc.abstractmethod
    def update(self, status: Status) -> None:
        """Takes note of the run's state; may be called as often as one likes."""

    @abc.abstractmethod
    def event(self, text: str) -> None:
        """Shows a one-line happening that stays on the screen, such as `checkpoint 500 written`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Shows the last status in full and gives the terminal back; closing twice is fine."""

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_view(stream: TextIO | None = None, *, clock: Clock = time.monotonic) -> View:
    """A table that is redrawn in place if `stream` (default: stderr) is a terminal that can, else plain lines."""
    from raylingvo.monitor.live_plain import PlainView
    from raylingvo.monitor.live_table import TableView

    out: TextIO = sys.stderr if stream is None else stream
    console = Console(file=out)
    # The stream itself is asked: FORCE_COLOR makes rich take any file for a terminal.
    if out.isatty() and not console.is_dumb_terminal:
        return TableView(console, clock=clock)
    return PlainView(out, clock=clock)
