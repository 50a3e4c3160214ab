"""Arrow files: mapped, not copied; compressed batches are counted without decompressing them."""

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest

from raylingvo.data.records import CorruptRecordError, open_records


@pytest.mark.parametrize("writer", [pa.ipc.new_file, pa.ipc.new_stream], ids=["file", "stream"])
def test_opening_maps_the_file(root, writer):
    table = pa.table({"x": range(100_000)})
    with writer(str(root / "x.arrow"), table.schema) as opened:
        opened.write_table(table, max_chunksize=1000)
    before = pa.total_allocated_bytes()
    records = open_records("x.arrow")
    assert len(records) == 100_000 and pa.total_allocated_bytes() - before < 100_000
    assert records.read(np.array([99_999, 0])) == [{"x": 99_999}, {"x": 0}]


def test_compressed_batches_are_decompressed_when_they_are_read(root):
    table = pa.table({"x": range(1000), "large": [bytes(1000)] * 1000})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(str(root / "x.arrow"), table.schema, options=options) as opened:
        opened.write_table(table, max_chunksize=100)
    before = pa.total_allocated_bytes()
    records = open_records("x.arrow")
    assert len(records) == 1000 and pa.total_allocated_bytes() - before < 100_000
    assert records.read(np.array([999]))[0] == {"x": 999, "large": bytes(1000)}


def test_offsets_out_of_bounds_are_refused(root):
    table = pa.table({"x": ["a", "b", "c"]})
    with pa.ipc.new_file(str(root / "x.arrow"), table.schema) as opened:
        opened.write_table(table)
    content = (root / "x.arrow").read_bytes()
    offsets = np.arange(4, dtype=np.int32).tobytes()
    wrong = np.array([0, 1, 2, 1 << 30], np.int32).tobytes()
    assert content.count(offsets) == 1
    (root / "x.arrow").write_bytes(content.replace(offsets, wrong))
    with pytest.raises(CorruptRecordError, match=r"x\.arrow: row 1 in group 0: .*[Oo]ffset"):
        open_records("x.arrow").read(np.array([1]))
