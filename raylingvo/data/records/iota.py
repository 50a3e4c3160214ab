"""`iota:N`: the numbers 0 to N - 1 as records, for tests and examples."""

from __future__ import annotations

import numpy as np

from raylingvo.data.records.base import ShardedRecords
from raylingvo.data.records.files import DataFile
from raylingvo.errors import RequestError

_MAX = 10**10  # beyond it the records have more than 10 digits


class IotaRecords(ShardedRecords):
    """Record i is i in ten decimal digits, as bytes, as Lingvo's `iota:`."""

    def __init__(self, count: str):
        """count: 1 to 10^10, in decimal."""
        if not (count.isascii() and count.isdecimal() and 1 <= int(count) <= _MAX):
            raise RequestError(f"iota needs a number of records from 1 to 10^10, as in iota:100 (got 'iota:{count}')")
        super().__init__("iota", [DataFile(path=f"iota:{int(count)}", size=0, version="")], [int(count)])

    def _read(self, shard: int, numbers: np.ndarray) -> list[bytes]:
        del shard
        return [b"%010d" % number for number in numbers.tolist()]

    def _place(self, shard: int, number: int) -> str:
        return f"{self._files[shard].path}: record {number}"
