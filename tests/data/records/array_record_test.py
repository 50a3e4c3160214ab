"""ArrayRecord: records in any order, several files, copies of remote ones that go, damage named."""

import gc
import tempfile
from pathlib import Path

import numpy as np
import pytest

from raylingvo.data.records import CorruptRecordError, array_record, open_records, write_records
from raylingvo.errors import RequestError


@pytest.mark.parametrize("place", ["", "memory://d/"])
def test_any_order_over_files(memory, place, monkeypatch):
    monkeypatch.setattr(array_record, "_MAX_OPEN", 2)
    for i in range(4):
        write_records(f"{place}x.array_record-{i:05d}-of-00004", [b"%d.%d" % (i, j) for j in range(5)])
    records = open_records(f"{place}x.array_record@4")
    indices = np.random.default_rng(0).integers(0, 20, 50)
    assert records.read(indices) == [b"%d.%d" % divmod(i, 5) for i in indices]
    assert records.where(7).endswith("x.array_record-00001-of-00004: record 2")
    records.close()
    assert records.read(np.array([19])) == [b"3.4"]


def test_copies_of_remote_files_go(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    write_records("memory://x.array_record", [b"a"])
    records = open_records("memory://x.array_record")
    assert len(list(tmp_path.glob("raylingvo-records-*"))) == 1
    del records
    gc.collect()
    assert not list(tmp_path.glob("raylingvo-records-*"))


def test_damage_names_its_record(root):
    written = [np.random.default_rng(i).bytes(1000) for i in range(10)]
    write_records("x.array_record", written)
    content = bytearray((root / "x.array_record").read_bytes())
    content[content.index(written[6][100:120])] ^= 1
    (root / "x.array_record").write_bytes(content)
    records = open_records("x.array_record")
    with pytest.raises(CorruptRecordError, match=r"x.array_record: record 6: .*hash mismatch") as error:
        records.read(np.array([2, 6, 3]))
    assert error.value.index == 6
    others = [i for i in range(10) if i != 6]
    assert records.read(np.array(others)) == [written[i] for i in others]


@pytest.mark.parametrize("keep", [0, 10, 1000, -1])
def test_files_without_their_footer_are_refused(root, keep):
    write_records("x.array_record", [b"a" * 100] * 10)
    (root / "x.array_record").write_bytes((root / "x.array_record").read_bytes()[:keep])
    with pytest.raises(RequestError, match=r"x.array_record is not a readable ArrayRecord file: its footer"):
        open_records("x.array_record")


def test_a_file_that_goes(root):
    write_records("x.array_record", [b"a"])
    records = open_records("x.array_record")
    records.close()
    (root / "x.array_record").unlink()
    with pytest.raises(RequestError, match=r"cannot read .*x.array_record: No such file"):
        records.read(np.array([0]))


def test_a_full_disk_is_an_error_of_the_disk():
    with pytest.raises(OSError, match="No space left on device"):
        array_record.write(Path("/dev/full"), [b"a"])
    with pytest.raises(RuntimeError, match="not the disk's"):
        array_record.write(Path("/dev/null"), (_ for _ in ()).throw(RuntimeError("not the disk's")))
