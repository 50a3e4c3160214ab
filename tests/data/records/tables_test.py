"""Parquet and Arrow: rows by groups in any order, values as plain Python or arrays, damage named, never a crash."""

import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from raylingvo.data.records import open_records, tables
from raylingvo.errors import RequestError

N = 50


def table(start=0):
    ids = [list(range(i % 4)) for i in range(start, start + N)]
    return pa.table(
        {
            "id": pa.array(range(start, start + N), pa.int64()),
            "text": [f"text {i}" for i in range(start, start + N)],
            "raw": [b"\xff%d" % i for i in range(start, start + N)],
            "ids": pa.array(ids, pa.list_(pa.int32())),
        }
    )


def write_parquet(path, table, **kwargs):
    pq.write_table(table, path, row_group_size=7, write_page_checksum=True, **kwargs)


def write_file(path, table, **kwargs):
    with pa.ipc.new_file(str(path), table.schema, **kwargs) as writer:
        writer.write_table(table, max_chunksize=7)


def write_stream(path, table):
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


WRITERS = {
    "parquet": write_parquet,
    "arrow": write_file,
    "stream": write_stream,
    "compressed": lambda path, table: write_file(path, table, options=pa.ipc.IpcWriteOptions(compression="zstd")),
    "feather": lambda path, table: pa.feather.write_feather(table, path, chunksize=7),
}


@pytest.fixture(params=WRITERS)
def format(request):
    return request.param


def ending(format):
    return "parquet" if format == "parquet" else "arrow"


@pytest.mark.parametrize("place", ["local", "memory"])
def test_rows_in_any_order(root, memory, format, place):
    for i in range(3):
        local = root / f"{i}.{ending(format)}"
        WRITERS[format](local, table(i * N))
        memory.pipe_file(f"/d/{local.name}", local.read_bytes())
    records = open_records(f"{'' if place == 'local' else 'memory://d/'}*.{ending(format)}")
    assert len(records) == 3 * N
    indices = np.random.default_rng(0).integers(0, 3 * N, 100)
    for i, row in zip(indices, records.read(indices), strict=True):
        assert (row["id"], row["text"], row["raw"]) == (i, f"text {i}", b"\xff%d" % i)
        assert type(row["id"]) is int and list(row) == ["id", "text", "raw", "ids"]
        np.testing.assert_array_equal(row["ids"], np.arange(i % 4, dtype=np.int32), strict=True)
    assert records.where(N + 8).endswith(f"1.{ending(format)}: row 8 in group 1")
    records.close()
    assert records.read(np.array([7]))[0]["id"] == 7


def test_groups_are_decoded_once_while_they_fit(root, monkeypatch):
    write_parquet(root / "x.parquet", table())
    decoded = []
    records = open_records("x.parquet")
    group = records._group
    records._group = lambda shard, i: decoded.append(i) or group(shard, i)
    for _ in range(3):
        records.read(np.arange(N)[::-1])
    assert sorted(decoded) == list(range(8))
    monkeypatch.setattr(tables, "_CACHE_BYTES", 0)
    records = open_records("x.parquet")
    assert [row["id"] for row in records.read(np.arange(N))] == list(range(N))
    assert len(records._cache._tables) == 1


def test_a_cached_group_costs_nothing_to_find(root, monkeypatch):
    class Table:
        nbytes = property(lambda self: measured.append(self) or 3)

    measured: list[Any] = []
    cache = tables._TableCache(max_bytes=7)
    for i in (0, 1, 0, 1, 0, 2, 0, 2):  # 2 takes the place of 1
        cache.get((0, i), Table)
    assert {i for _, i in cache._tables} == {0, 2} and len(set(measured)) == 3
    found = cache.get((0, 2), pytest.fail)
    assert cache.get((0, 2), pytest.fail) is found
    n = len(measured)
    for _ in range(9):
        cache.get((0, 0), pytest.fail)
    assert len(measured) == n
    cache.clear()
    for i in (0, 1):
        cache.get((0, i), Table)
    assert len(cache._tables) == 2


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
@pytest.mark.parametrize("content", [b"", b"text", b"PAR1" * 5, b"ARROW1\0\0" * 4])
def test_files_of_other_formats_are_refused(root, name, content):
    (root / name).write_bytes(content)
    with pytest.raises(RequestError, match=rf"^{root}/{name} is not a readable (Parquet|Arrow) file: ") as error:
        open_records(name)
    assert "\n" not in str(error.value)


def test_a_file_that_changes(root, format):
    name = f"x.{ending(format)}"
    WRITERS[format](root / name, table())
    records = open_records(name)
    with (root / name).open("r+b") as file:
        file.truncate(100)
    with pytest.raises(RequestError, match=f"{name} has changed while it was in use"):
        records.read(np.array([0]))


# In a process of its own: what this looks for would kill it.
FUZZ = """
import sys, numpy as np
from raylingvo.data.records import open_records
from raylingvo.errors import RequestError
name, seed = sys.argv[1], int(sys.argv[2])
whole = open(name, 'rb').read()
rng = np.random.default_rng(seed)
outcomes = dict(read=0, refused=0)
for i in range(150):
    content = bytearray(whole)
    for _ in range(int(rng.integers(1, 4))):
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    if i % 3 == 0:
        content = content[:rng.integers(1, len(content))]
    damaged = f'{name}.damaged.{name.rpartition(".")[2]}'
    open(damaged, 'wb').write(content)
    try:
        records = open_records(damaged)
        records.read(np.arange(min(len(records), 100)))
        outcomes['read'] += 1
    except RequestError as e:
        assert len(str(e).splitlines()) == 1, str(e)
        outcomes['refused'] += 1
print(outcomes)
"""


@pytest.mark.parametrize("format", ["parquet", "arrow", "compressed", "stream", "array_record", "npz"])
def test_damaged_files_never_crash(root, format):
    from raylingvo.data.records import write_records

    end = format if format in ("parquet", "array_record", "npz") else "arrow"
    path = root / f"x.{end}"
    if format in WRITERS:
        WRITERS[format](path, table())
    else:
        write_records(path, [{"x": i, "y": np.arange(3)} for i in range(20)], format)
    done = subprocess.run([sys.executable, "-c", FUZZ, str(path), "0"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
