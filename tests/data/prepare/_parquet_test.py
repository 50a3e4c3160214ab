"""Parquet files appear whole, in the order of their parts, with row groups of the size asked for."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.prepare import _parquet
from raylingvo.errors import RequestError

SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.string())], {b"key": b"value"})


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(6)), st.lists(st.integers(0, 9), min_size=6, max_size=6), st.integers(1, 5))
def test_parts_come_in_the_order_of_their_keys(tmp_path_factory, keys, sizes, rows_per_group):
    folder = tmp_path_factory.mktemp("parts")
    with _parquet.write(folder / "a.parquet", SCHEMA, rows_per_group) as rows:
        for key in keys:
            rows.part((key, "part"))
            for i in range(sizes[key]):
                rows.append(100 * key + i, f"ä{i}")
    with pq.ParquetFile(folder / "a.parquet") as file:
        assert file.read()["n"].to_pylist() == [100 * key + i for key in range(6) for i in range(sizes[key])]
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        assert file.schema_arrow.metadata[b"key"] == file.metadata.metadata[b"key"] == b"value"
    assert max(groups, default=0) <= rows_per_group
    assert len(groups) == sum(-(-size // rows_per_group) for size in sizes)
    assert rows.count == sum(sizes)
    assert [file.name for file in folder.iterdir()] == ["a.parquet"]


def test_without_parts_all_row_groups_but_the_last_are_full(tmp_path):
    with _parquet.write(tmp_path / "new" / "a.parquet", SCHEMA, 4) as rows:
        for i in range(10):
            rows.append(i, "x")
    with pq.ParquetFile(tmp_path / "new" / "a.parquet") as file:
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4, 4, 2]
    assert rows.line("rows") == f"{tmp_path}/new/a.parquet: 10 rows, 0.0 MB"


def test_a_failure_leaves_the_former_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.parquet"
    file.write_bytes(b"former")
    with pytest.raises(ZeroDivisionError), _parquet.write(file, SCHEMA, 1) as rows:
        rows.append(1, "x")
        raise ZeroDivisionError
    assert file.read_bytes() == b"former"
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]


def test_a_failed_reordering_leaves_nothing_either(tmp_path, monkeypatch):
    def full_disk(self, i):
        raise OSError("No space left on device")

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", full_disk)
    with (
        pytest.raises(RequestError, match=r"cannot write .*/a\.parquet: .*No space left"),
        _parquet.write(tmp_path / "a.parquet", SCHEMA, 1) as rows,
    ):
        for key in (2, 1):
            rows.part(key)
            rows.append(key, "x")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(RequestError, match=r"cannot write .*/file/a: .*; RAYLINGVO_DATA names"),
        _parquet.write(tmp_path / "file" / "a", SCHEMA, 1),
    ):
        raise AssertionError
