"""How many of something are done: a bar in a terminal, one line in a pipe or a log; both on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """Gives a function to be called with (done, all; None: not known) as often as one likes."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(label, markup=False, highlight=False)
        yield lambda done, total: None
        return
    with Progress(console=console, transient=True) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
