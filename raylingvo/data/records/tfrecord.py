"""TFRecord: each record between a header, its length and its checksum, and the checksum of its data.

Framing, from TensorFlow's core/lib/io/record_writer.h: length u64, masked CRC-32C of the length u32, data, masked
CRC-32C of the data u32; all little-endian. Files of one record after another have no index of their own.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterable
from typing import BinaryIO

import numpy as np

from raylingvo.data.records.base import BadRecord
from raylingvo.data.records.files import Blob

HEADER_BYTES = 12
FRAME_BYTES = 16  # header and footer
# Views of local files cost nothing, and this bounds what one request of a remote one moves.
_WINDOW = 1 << 24
_MASK_DELTA = 0xA282EAD8
_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")


def scan(blob: Blob) -> tuple[np.ndarray, str | None]:
    """Where records start (and the last one ends), i64[N + 1], from their headers alone; and what is wrong behind.

    Every header is verified. A length is only ever compared with the file's size: no value of it makes this allocate.
    """
    parts = [np.zeros(1, np.int64)]
    at = 0
    while at < blob.size:
        window = blob.window(at, min(blob.size, at + _WINDOW))
        found, after = _walk(window)
        intact = _intact(window, found)
        if intact < len(found):
            parts.append(at + found[1 : intact + 1])
            return np.concatenate(parts), "the checksum of its length is wrong"
        after += at
        if after > blob.size:
            parts.append(at + found[1:])
            return np.concatenate(parts), _too_short(blob, at, found)
        parts.append(np.append(at + found[1:], after))
        at = after
    return np.concatenate(parts), None


def _walk(window: memoryview | bytes) -> tuple[np.ndarray, int]:
    """Where the records start whose headers are in the window, i64[M], and where the last of them ends.

    Without a whole header, the end is behind the window: at that of a header.
    """
    starts: list[int] = []
    at, last = 0, len(window) - HEADER_BYTES
    length_at = _LENGTH.unpack_from
    while at <= last:
        starts.append(at)
        at += length_at(window, at)[0] + FRAME_BYTES
    return np.array(starts, np.int64), at if starts else HEADER_BYTES


def _too_short(blob: Blob, at: int, found: np.ndarray) -> str:
    if not len(found):
        return f"the file ends in its header, after {blob.size - at} of {HEADER_BYTES} bytes"
    start = at + int(found[-1])
    (length,) = _LENGTH.unpack(blob.window(start, start + 8))
    left = max(0, blob.size - start - FRAME_BYTES)
    return f"its length is {length} bytes, but the file ends after {left}"


def _intact(window: memoryview | bytes, starts: np.ndarray) -> int:
    """The number of headers, from the first one on, with a right checksum."""
    if not len(starts):
        return 0
    header_Mx12 = np.lib.stride_tricks.sliding_window_view(np.frombuffer(window, np.uint8), HEADER_BYTES)[starts]
    table_8x256, crc_of_zeros = _header_tables()
    crc_M = np.full(len(starts), crc_of_zeros, np.uint32)
    for i in range(8):
        crc_M ^= table_8x256[i][header_Mx12[:, i]]
    stored_M = np.ascontiguousarray(header_Mx12[:, 8:]).view("<u4")[:, 0]
    wrong = np.flatnonzero(_masked(crc_M) != stored_M)
    return int(wrong[0]) if len(wrong) else len(starts)


@functools.cache
def _header_tables() -> tuple[np.ndarray, int]:
    """u32[8, 256]: what each byte of a length adds to its CRC; and the CRC of length 0. A CRC is affine over GF(2)."""
    crc32c = _crc32c()
    zero = crc32c(bytes(8))
    tables = [[crc32c(bytes(i) + bytes([b]) + bytes(7 - i)) ^ zero for b in range(256)] for i in range(8)]
    return np.array(tables, np.uint32), zero


def _masked(crc: np.ndarray) -> np.ndarray:
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(_MASK_DELTA)


def masked_crc(data: bytes) -> int:
    """The CRC-32C of `data` as TFRecord stores it: turned, so that a CRC of data that hold CRCs stays a good one."""
    crc = _crc32c()(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


@functools.cache
def _crc32c() -> Callable[[bytes], int]:
    from google_crc32c import value

    return value


def is_header(head: bytes) -> bool:
    """Whether the first 12 bytes are a length with its checksum."""
    return len(head) >= HEADER_BYTES and _CRC.unpack_from(head, 8)[0] == masked_crc(head[:8])


def decode(frames: list[bytes], numbers: np.ndarray) -> list[bytes]:
    """The data of framed records, each verified against its checksum."""
    crc32c, stored, records = _crc32c(), _CRC.unpack_from, []
    for i, frame in enumerate(frames):
        data = frame[HEADER_BYTES:-4]
        crc = crc32c(data)
        if ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF != stored(frame, len(frame) - 4)[0]:
            raise BadRecord(int(numbers[i]), f"the checksum of its {len(data)} bytes is wrong")
        records.append(data)
    return records


def write(file: BinaryIO, records: Iterable[bytes]) -> int:
    """Appends framed records; their number."""
    n = 0
    for data in records:
        length = _LENGTH.pack(len(data))
        file.write(b"".join((length, _CRC.pack(masked_crc(length)), data, _CRC.pack(masked_crc(data)))))
        n += 1
    return n
