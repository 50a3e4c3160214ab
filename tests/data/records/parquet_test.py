"""Parquet files of others: the checksums of their pages are verified, and sets without rows are empty."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylingvo.data.records import CorruptRecordError, open_records


def test_a_damaged_page_names_the_row(root):
    table = pa.table({"x": [b"<%05d>" % i * 20 for i in range(14)]})
    pq.write_table(table, root / "x.parquet", row_group_size=7, write_page_checksum=True, compression="none")
    content = (root / "x.parquet").read_bytes()
    at = content.index(b"<00010>")
    (root / "x.parquet").write_bytes(content[:at] + b"!" + content[at + 1 :])
    records = open_records("x.parquet")
    assert records.read(np.array([3]))[0]["x"] == b"<00003>" * 20
    with pytest.raises(CorruptRecordError, match=r"x.parquet: row 9 in group 1: could not verify page integrity") as e:
        records.read(np.array([2, 9, 8]))
    assert e.value.index == 9


def test_files_without_rows(root):
    pq.write_table(pa.table({"x": pa.array([], pa.int64())}), root / "a.parquet")
    pq.write_table(pa.table({"x": [1, 2]}), root / "b.parquet")
    assert len(open_records("a.parquet")) == 0
    assert open_records("*.parquet").read(np.array([1, 0])) == [{"x": 2}, {"x": 1}]
