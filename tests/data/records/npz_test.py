"""Arrays of one length become records; everything else is refused in one line."""

import io
import zipfile

import numpy as np
import pytest

from raylingvo.data.records import open_records, write_records
from raylingvo.errors import RequestError


def test_rows_are_records(root, memory):
    arrays = {
        "image": np.arange(24, dtype=np.uint8).reshape(4, 2, 3),
        "label": np.array([3, 1, 2, 0], np.int32),
        "score": np.array([0.5, 1, 1.5, 2], np.float32),
        "name": np.array(["a", "b", "ü", ""]),
        "raw": np.array([b"a", b"b", b"c", b"d"]),
    }
    np.savez(root / "x.npz", **arrays)
    memory.pipe_file("/x.npz", (root / "x.npz").read_bytes())
    for pattern in ("x.npz", "memory://x.npz"):
        records = open_records(pattern)
        assert len(records) == 4
        third, first = records.read(np.array([2, 0]))
        np.testing.assert_array_equal(third["image"], arrays["image"][2], strict=True)
        assert [type(third[name]) for name in ("label", "score", "name", "raw")] == [int, float, str, bytes]
        assert {name: value for name, value in third.items() if name != "image"} == {
            "label": 2, "score": 1.5, "name": "ü", "raw": b"c",
        }  # fmt: skip
        assert records.where(3).endswith("x.npz: record 3")
        first["image"][:] = 0
        assert records.read(np.array([0]))[0]["image"].max() == 5


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def raw_member(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", content)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


HUGE = npy(np.zeros(10)).replace(b"(10,), }" + b" " * 13, b"(10000000000000000,), }")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npz(x=np.array([{}], object)), "not a readable .npz of plain arrays: Object arrays cannot be loaded"),
        (npz(x=np.zeros(3), y=np.zeros((4, 2))), r"must have the same first dimension \(got x \[3\], y \[4, 2\]\)"),
        (npz(x=np.float32(1)), r"must have the same first dimension \(got x \[\]\)"),
        (npz(), "has no arrays"),
        (npy(np.zeros(3)), "is not a readable .npz"),
        (b"", "is not a readable .npz"),
        (npz(x=np.zeros(100))[:-10], "is not a readable .npz"),
        (npz(x=np.zeros(100)).replace(bytes(100), bytes(99) + b"1", 1), "plain arrays: Bad CRC-32"),
        (raw_member(HUGE), "is not a readable .npz of plain arrays"),
        (raw_member(b"\x93NUMPY\x01\x00"), "is not a readable .npz of plain arrays"),
    ],
    ids=["pickled", "lengths", "scalar", "none", "npy", "empty", "truncated", "flipped", "huge", "header"],
)
def test_what_is_no_table_is_refused(root, content, message):
    (root / "x.npz").write_bytes(content)
    with pytest.raises(RequestError, match=message) as error:
        open_records("x.npz")
    assert str(error.value).startswith(f"{root}/x.npz") and "\n" not in str(error.value)


def test_any_name_may_be_that_of_a_field():
    record = {"file": 1, "allow_pickle": 2, "image/raw": b"a\0b", "": "x", "texts": ["a", ""]}
    write_records("x.npz", [record] * 2)
    (found,) = open_records("x.npz").read(np.array([1]))
    assert {**found, "texts": found["texts"].tolist()} == record
