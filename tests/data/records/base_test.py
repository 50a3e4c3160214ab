"""Fingerprints tell datasets apart; errors keep their index on the way between processes."""

import pickle

from raylingvo.data.records import CorruptRecordError, open_records
from raylingvo.errors import RequestError


def test_fingerprints_follow_names_sizes_times_and_formats(root):
    (root / "a.txt").write_bytes(b"a\n")
    (root / "b.txt").write_bytes(b"b\n")
    seen = {open_records(pattern).fingerprint for pattern in ("a.txt", "b.txt", "*.txt", "jsonl:a.txt")}
    assert len(seen) == 4
    assert open_records("b.txt,a.txt").fingerprint == open_records("*.txt").fingerprint in seen
    (root / "a.txt").write_bytes(b"c\n")
    assert open_records("a.txt").fingerprint not in seen


def test_corrupt_record_errors_are_requests_and_pickle():
    error = CorruptRecordError(7, "FILE: record 3 at byte 4711: reason")
    assert isinstance(error, RequestError)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.index, str(copy)) == (CorruptRecordError, 7, str(error))
