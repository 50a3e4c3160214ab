"""The commit that a folder is of."""

from __future__ import annotations

import subprocess
from pathlib import Path

# By this variable a job is told the commit of the folder that it has a copy of, without .git.
GIT_SHA = "RAYLINGVO_GIT_SHA"


def git_sha(directory: Path) -> str | None:
    """The commit of a directory, such as that of the user's experiments; + if it has uncommitted changes.

    None if there is no git, or no repository.
    """

    def git(*arguments: str) -> str:
        return subprocess.check_output(
            ["git", "-C", directory, *arguments], stderr=subprocess.DEVNULL, text=True, timeout=10
        ).strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None
