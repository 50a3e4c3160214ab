"""Records: random access to what files of any supported format hold, and writing them."""

from raylingvo.data.records.base import CorruptRecordError, Records
from raylingvo.data.records.opening import files_fingerprint, open_records
from raylingvo.data.records.patterns import FORMATS
from raylingvo.data.records.write import write_records

__all__ = ["FORMATS", "CorruptRecordError", "Records", "files_fingerprint", "open_records", "write_records"]
