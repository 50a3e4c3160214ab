"""A log that survives a full disk."""

from __future__ import annotations

import io
from pathlib import Path

from raylingvo.monitor.atomic import naming


class LogFile(io.TextIOBase):
    """A file that is opened for each piece of text: one that a full disk refuses is not tried again at the end."""

    def __init__(self, path: Path):
        self._path = path

    def write(self, text: str) -> int:
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            return file.write(text)
