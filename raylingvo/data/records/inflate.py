"""Gzipped files: told by their first bytes, and decompressed into memory, for gzip has no random access."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from raylingvo.data.records.files import Blob, DataFile, MemoryBlob
from raylingvo.data.records.tfrecord import HEADER_BYTES, is_header

_MAGIC = b"\x1f\x8b\x08"
_STEP = 1 << 20
_GZIP = 31  # zlib's number for a gzip wrapper with the largest window


def is_gzipped(blob: Blob) -> bool:
    """Whether the content is gzipped; a TFRecord whose first length happens to look like gzip's magic is not."""
    head = bytes(blob.window(0, min(blob.size, HEADER_BYTES)))
    return head.startswith(_MAGIC) and not is_header(head)


def begins(file: DataFile, size: int) -> bytes:
    """The first `size` bytes of a file, or fewer; decompressed if it is gzipped."""
    blob = file.open()
    head = bytes(blob.window(0, min(blob.size, size)))
    if not is_gzipped(blob):
        return head
    try:
        return zlib.decompressobj(_GZIP).decompress(head, size)
    except zlib.error:
        return head


def inflate(blob: Blob) -> tuple[MemoryBlob, str | None]:
    """The decompressed content, and what is wrong with the rest if it cannot be decompressed to its end.

    Files of several members, one after another, and zero bytes after the last are as gzip(1) reads them.
    """
    parts: list[bytes] = []
    member = zlib.decompressobj(_GZIP)
    problem: str | None = None
    at = 0
    while at < blob.size and problem is None:
        compressed = bytes(blob.window(at, min(blob.size, at + _STEP)))
        at += len(compressed)
        while compressed:
            if member.eof:
                compressed = compressed.lstrip(b"\0")
                if not compressed:
                    break
                member = zlib.decompressobj(_GZIP)
            before = member.copy()
            try:
                parts.append(member.decompress(compressed))
            except zlib.error as e:
                problem = f"the gzip stream is damaged ({e})"
                parts.extend(_up_to_the_error(before, compressed))
                break
            compressed = member.unused_data
    if problem is None and not member.eof:
        problem = "the gzip stream ends early"
    return MemoryBlob(b"".join(parts)), problem


def _up_to_the_error(member: zlib._Decompress, compressed: bytes) -> Iterator[bytes]:
    """What a damaged piece still gives: `decompress` itself raises instead of returning that."""
    for i in range(len(compressed)):
        try:
            yield member.decompress(compressed[i : i + 1])
        except zlib.error:
            return
