"""The live view of a run: a table of roles on a terminal, plain lines elsewhere. See status.py for what it shows."""

from __future__ import annotations

import abc
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console

from raylingvo.monitor.status import Status

Clock = Callable[[], float]  # seconds


class Screen(abc.ABC):
    """Shows what goes on; a context manager, so that the terminal is restored whatever happens.

    All methods are for one thread.
    """

    @abc.abstractmethod
    def event(self, text: str) -> None:
        """Shows a one-line happening that stays on the screen, such as `checkpoint 500 written`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Shows the last state in full and gives the terminal back; closing twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class View(Screen):
    """Shows a run while it goes on."""

    @abc.abstractmethod
    def update(self, status: Status) -> None:
        """Takes note of the run's state; may be called as often as one likes."""


def redrawable(stream: TextIO) -> Console | None:
    """The console of a stream that is a terminal on which a table can be redrawn in place; None for any other."""
    console = Console(file=stream)
    # The stream itself is asked: FORCE_COLOR makes rich take any file for a terminal.
    return console if stream.isatty() and not console.is_dumb_terminal else None


def open_view(stream: TextIO | None = None, *, clock: Clock = time.monotonic) -> View:
    """A table that is redrawn in place if `stream` (default: stderr) is a terminal that can, else plain lines."""
    from raylingvo.monitor.live_plain import PlainView
    from raylingvo.monitor.live_table import TableView

    out: TextIO = sys.stderr if stream is None else stream
    console = redrawable(out)
    return PlainView(out, clock=clock) if console is None else TableView(console, clock=clock)
