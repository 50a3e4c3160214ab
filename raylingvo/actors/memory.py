"""How the processes of roles keep their memory from one train step to the next."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

# For glibc's malloc, which reads these when a process starts. On CPUs a train step allocates and frees the same large
# blocks each time. By default they go back to the system, and a fifth of the step is spent on having them zeroed again,
# page by page. Others' mallocs ignore this. What the user has set stays.
KEEP = {
    "MALLOC_ARENA_MAX": "1",  # only the first of malloc's arenas can hold large blocks
    "MALLOC_MMAP_MAX_": "0",  # no blocks that are mapped and unmapped by themselves
    "MALLOC_TRIM_THRESHOLD_": str(2**62),  # bytes that have to be free at the end before they go back
}


def wanted() -> dict[str, str]:
    """What is to be set, where the user has not."""
    return {name: value for name, value in KEEP.items() if name not in os.environ}


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """What is started meanwhile keeps its memory."""
    ours = wanted()
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]
