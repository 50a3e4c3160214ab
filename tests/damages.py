"""What power failures, full disks and people do to files."""

from __future__ import annotations

from pathlib import Path

DAMAGES = {
    "emptied": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
    "one bit": lambda content: content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
    "longer": lambda content: content + b"\0",
    "missing": None,
}


def damage(path: Path, how: str) -> None:
    """Damages a file of 9 bytes at least."""
    change = DAMAGES[how]
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
