"""The folder that a job takes along: what Ray would pack of it, and whether it takes that much."""

from __future__ import annotations

import heapq
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ray._private import ray_constants
from ray._private.runtime_env import packaging

from raylingvo.data.paths import data_root
from raylingvo.errors import RequestError

# Of a package that comes through the dashboard's port (Ray 2.60; from within a cluster it takes 512 MiB).
MAX_BYTES: int = ray_constants.DASHBOARD_CLIENT_MAX_SIZE
# Ray itself leaves out .git, .venv, venv and __pycache__, and what .gitignore and .rayignore name.
EXCLUDES = (
    "/runs",
    "/sweeps",
    "/build",
    "/dist",
    "**/train/checkpoints",
    "*.egg-info",
    "node_modules",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
    # Secrets, of a home directory, say: what goes along is there for all who may use the cluster.
    ".ssh",
    ".ray",
    ".config",
    ".env",
    ".aws",
    ".netrc",
    ".gnupg",
    ".kube",
)
_RECORDS = ("run.json", "sweep.json")  # in a logdir there is one of them
_BYTES_PER_FILE = 200  # about: its name is in the archive twice
_SHOWN = 3


def excludes_for(directory: Path, given: Sequence[str] = ()) -> list[str]:
    """Patterns, as those of .gitignore, of what a job leaves behind: `given`, the usual, the data root, and logdirs."""
    patterns = [*EXCLUDES, *given]
    root, data = directory.resolve(), data_root().resolve()
    if data != root and data.is_relative_to(root):
        patterns.append(_pattern(data.relative_to(root)))
    logdirs: list[Path] = []

    def is_logdir(path: Path) -> bool:
        if path == directory or not any((path / record).is_file() for record in _RECORDS):
            return False
        logdirs.append(path.relative_to(directory))
        return True

    _packed(directory, patterns, is_logdir)
    return patterns + [_pattern(logdir) for logdir in logdirs]


def check_size(directory: Path, patterns: Sequence[str]) -> None:
    """Raises RequestError if what the folder has besides `patterns` is more than Ray takes."""
    sizes = {path: path.stat().st_size for path in _packed(directory, patterns) if path.is_file()}
    total = sum(sizes.values()) + _BYTES_PER_FILE * len(sizes)
    if total < MAX_BYTES:
        return
    largest = heapq.nlargest(_SHOWN, sizes, key=sizes.__getitem__)
    shown = ", ".join(f"{path.relative_to(directory)} ({_in_mib(sizes[path])})" for path in largest)
    raise RequestError(
        f"--working-dir {directory}: the job would take along {_in_mib(total)}, and Ray takes less than "
        f"{_in_mib(MAX_BYTES)}; the largest: {shown}; leave some out with --exclude PATTERN, .gitignore or .rayignore"
    )


def _in_mib(size: float) -> str:
    return f"{size / (1 << 20):,.1f} MiB"


def _pattern(path: Path) -> str:
    return "/" + re.sub(r"([\\*?\[\]!# ])", r"\\\1", path.as_posix())


def _packed(directory: Path, patterns: Sequence[str], *also: Callable[[Path], bool]) -> list[Path]:
    """The files and folders that Ray would pack, by its own rules. also: what else is left out."""
    found: list[Path] = []
    patterns = [*ray_constants.get_runtime_env_default_excludes(), *patterns]
    excludes = [packaging._get_excludes(directory, patterns), *also]
    log = logging.getLogger(__name__)
    packaging._dir_travel(directory, excludes, found.append, include_gitignore=True, logger=log)
    return found
