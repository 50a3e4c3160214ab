"""How many of something are done: a bar in a terminal, one line in a pipe or a log; both on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

# Takes how many are done so far.
Report = Callable[[int], None]


class BarReport(Protocol):
    """Takes how many are done so far, and of how many; without that, of as many as before."""

    def __call__(self, done: int, total: int | None = None, /) -> None: ...


@contextlib.contextmanager
def progress_bar(label: str, total: int | None = None, *, in_bytes: bool = False) -> Iterator[BarReport]:
    """Shows `label` while the block runs, and gives a function to be called as often as one likes.

    total: None if it is not known, or not yet. in_bytes: shows bytes and bytes a second instead of per cent. Not
    reentrant: a terminal has room for one.
    """
    # Imported here: half the recipes' start-up time.
    from rich import progress as rich_progress
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(label, markup=False, highlight=False, soft_wrap=True)
        yield lambda done, total=None, /: None
        return
    description = rich_progress.TextColumn("{task.description}", markup=False)
    columns = [description, rich_progress.BarColumn()]
    if in_bytes:
        columns += [rich_progress.DownloadColumn(), rich_progress.TransferSpeedColumn()]
    else:
        columns += [rich_progress.TaskProgressColumn()]
    with rich_progress.Progress(*columns, rich_progress.TimeRemainingColumn(), console=console) as bars:
        task = bars.add_task(label, total=total)
        yield lambda done, total=None, /: bars.update(task, completed=done, total=total)
