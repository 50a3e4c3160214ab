"""Lines: of text as bytes, and of JSON as dicts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np

from raylingvo.data.records.base import BadRecord
from raylingvo.data.records.files import Blob

# A window whose comparison stays in the cache: measured, twice the speed of windows of 64 MB.
_WINDOW = 1 << 23
_LINE_FEED, _CARRIAGE_RETURN = b"\n\r"


def scan(blob: Blob) -> tuple[np.ndarray, str | None]:
    """Where lines start (and the last one ends), i64[N + 1]. A last line needs no line feed."""
    parts = [np.zeros(1, np.int64)]
    for at in range(0, blob.size, _WINDOW):
        byte_W = np.frombuffer(blob.window(at, min(blob.size, at + _WINDOW)), np.uint8)
        parts.append(np.flatnonzero(byte_W == _LINE_FEED) + (at + 1))
    starts = np.concatenate(parts)
    return (starts if starts[-1] == blob.size else np.append(starts, blob.size)), None


def scan_json(blob: Blob) -> tuple[np.ndarray, str | None]:
    """As `scan`, less the empty lines: they lie behind the record before them, where JSON allows white space."""
    starts, problem = scan(blob)
    begin_N, size_N = starts[:-1], np.diff(starts)
    blank_N = np.zeros(len(size_N), bool)
    short = np.flatnonzero(size_N <= 2)
    # All at once: of a remote file each range by itself is a round trip.
    found = blob.read_many(begin_N[short].tolist(), starts[short + 1].tolist())
    blank_N[short] = [not line.strip(b"\r\n") for line in found]
    return np.append(begin_N[~blank_N], blob.size), problem


def decode(frames: list[bytes], numbers: np.ndarray) -> list[bytes]:
    """Lines without their line feed. A carriage return before it belongs to the line, as in Lingvo."""
    del numbers
    return [frame.removesuffix(b"\n") for frame in frames]


def decode_json(frames: list[bytes], numbers: np.ndarray) -> list[dict[str, Any]]:
    """Objects. Their lists of numbers, of equal lengths where nested, become arrays: int64, uint64, float64 or bool.

    Lists of integers that no one dtype holds stay lists.
    """
    return [_object(frame, int(number)) for frame, number in zip(frames, numbers, strict=True)]


def _object(line: bytes, number: int) -> dict[str, Any]:
    try:
        parsed = json.loads(line.rstrip())
    # RecursionError: brackets nested deeper than Python's stack.
    except (ValueError, RecursionError) as e:
        raise BadRecord(number, f"not JSON: {e}") from e
    if not isinstance(parsed, dict):
        raise BadRecord(number, f"not a JSON object but a {type(parsed).__name__}")
    return {name: _array(value) if isinstance(value, list) else value for name, value in parsed.items()}


def _array(values: list[Any]) -> np.ndarray | list[Any]:
    if not values:
        return values
    try:
        array = np.array(values)
    except ValueError:  # lists of different lengths
        return values
    # NumPy makes floats of integers that no integer dtype holds together, and so changes hashes of 64 bits.
    if array.dtype.kind == "f" and np.abs(array).max(initial=0) >= 2**53 and array.tolist() != values:
        return values
    return array if array.dtype.kind in "biuf" else values


def write(file: BinaryIO, lines: Iterable[bytes]) -> int:
    """Appends lines, each with a line feed; their number."""
    n = 0
    for line in lines:
        file.write(line + b"\n")
        n += 1
    return n
