"""How far a long step of a recipe is: a bar in a terminal, one line in a pipe or a log; both on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

# Takes how much is done so far, of the total.
Report = Callable[[int], None]


@contextlib.contextmanager
def progress(label: str, total: int | None) -> Iterator[Report]:
    """Shows `label` while the block runs.

    total: in bytes; None if it is not known. Not reentrant: a terminal has room for one.
    """
    # Imported here: half the recipes' start-up time.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(label, markup=False, highlight=False, soft_wrap=True)
        yield lambda done: None
        return
    description = TextColumn("{task.description}", markup=False)
    speed = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(description, BarColumn(), *speed, console=console) as bars:
        task = bars.add_task(label, total=total)
        yield lambda done: bars.update(task, completed=done)
