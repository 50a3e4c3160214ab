"""Records that lie one after another in the bytes of a file: text, JSON lines and TFRecord, gzipped or not."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from raylingvo.data.records import offsets_index, text, tfrecord
from raylingvo.data.records.base import CorruptRecordError, ShardedRecords
from raylingvo.data.records.files import Blob, DataFile
from raylingvo.data.records.inflate import inflate, is_gzipped
from raylingvo.errors import RequestError

# Open files at once, of those that are not gzipped: a common limit of a process is 1,024.
_MAX_OPEN = 128
_THREADS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Framing:
    """How a format lies in a file.

    scan: Blob -> (i64[N + 1], where its records start, and the last one ends; what is wrong behind them, or None).
    decode: (the bytes of records, their numbers in the file) -> records; raises BadRecord.
    """

    scan: Callable[[Blob], tuple[np.ndarray, str | None]]
    decode: Callable[[list[bytes], np.ndarray], list[Any]]


_LINES = Framing(scan=text.scan, decode=text.decode)
_JSON_LINES = Framing(scan=text.scan_json, decode=text.decode_json)
_TFRECORD = Framing(scan=tfrecord.scan, decode=tfrecord.decode)
FRAMINGS = {"text": _LINES, "jsonl": _JSON_LINES, "tfrecord": _TFRECORD, "tfrecord_gzip": _TFRECORD}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Shard:
    """offsets: i64[N + 1]. blob: a gzipped file's content, else None. problem: what is wrong behind the records."""

    offsets: np.ndarray
    blob: Blob | None = None
    problem: str | None = None


class FramedRecords(ShardedRecords):
    """Random access by offsets: 8 bytes of memory a record, and the whole content of files that are gzipped."""

    def __init__(self, format: str, files: Sequence[DataFile], allow_truncated: bool):
        """Raises CorruptRecordError for the first file that breaks, unless `allow_truncated`."""
        self._framing = FRAMINGS[format]
        # Threads: finding lines and waiting for a disk or a network run side by side.
        with ThreadPoolExecutor(min(_THREADS, len(files))) as pool:
            shards = list(pool.map(functools.partial(_index, format, self._framing), files))
        self._offsets = [shard.offsets for shard in shards]
        counts = [len(offsets) - 1 for offsets in self._offsets]
        super().__init__(format, files, counts)
        self._inflated = {i: shard.blob for i, shard in enumerate(shards) if shard.blob is not None}
        self._is_inflated = frozenset(self._inflated)
        self._open = functools.lru_cache(_MAX_OPEN)(lambda shard: self._files[shard].open())
        for i, shard in enumerate(shards):
            if shard.problem is not None:
                message = f"{self._place(i, counts[i])}: {shard.problem}"
                if not allow_truncated:
                    raise CorruptRecordError(int(self._ends[i]), message)
                self.problems.append(f"{message}; it and what follows it in the file are lost")

    def close(self) -> None:
        self._inflated.clear()
        self._open.cache_clear()

    def _read(self, shard: int, numbers: np.ndarray) -> list[Any]:
        offsets = self._offsets[shard]
        frames = self._blob(shard).read_many(offsets[numbers].tolist(), offsets[numbers + 1].tolist())
        return self._framing.decode(frames, numbers)

    def _blob(self, shard: int) -> Blob:
        if shard not in self._is_inflated:
            return self._open(shard)
        blob = self._inflated.get(shard)
        if blob is None:
            blob = self._inflated[shard] = inflate(self._files[shard].open())[0]
        return blob

    def _place(self, shard: int, number: int) -> str:
        unit = " of the decompressed content" if shard in self._is_inflated else ""
        return f"{self._files[shard].path}: record {number} at byte {self._offsets[shard][number]}{unit}"


def _index(format: str, framing: Framing, file: DataFile) -> _Shard:
    blob = file.open()
    gzipped = is_gzipped(blob)
    if format == "tfrecord_gzip" and not gzipped and file.size:
        raise RequestError(f"{file.path} is not gzipped; read it as tfrecord:{file.path}")
    if gzipped:
        return _index_inflated(format, framing, blob)
    offsets = offsets_index.load(file, format)
    if offsets is not None:
        return _Shard(offsets=offsets)
    offsets, problem = framing.scan(blob)
    if problem is None:
        offsets_index.save(file, format, offsets)
    elif len(offsets) == 1 and format == "tfrecord":
        problem += " (is it a TFRecord file?)"
    return _Shard(offsets=offsets, problem=problem)


def _index_inflated(format: str, framing: Framing, blob: Blob) -> _Shard:
    content, broken = inflate(blob)
    offsets, problem = framing.scan(content)
    # A line that ends with the content may have been cut, where the content is.
    if broken is not None and problem is None and format in ("text", "jsonl") and not _ends_with_line_feed(content):
        offsets = offsets[:-1]
    # That the stream is damaged is why the record in it is.
    return _Shard(offsets=offsets, blob=content, problem=broken or problem)


def _ends_with_line_feed(blob: Blob) -> bool:
    return not blob.size or bytes(blob.window(blob.size - 1, blob.size)) == b"\n"
