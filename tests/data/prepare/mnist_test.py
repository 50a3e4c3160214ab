"""MNIST from every form it comes in gives the same Parquet files; damaged forms are refused in one line."""

import gzip
import hashlib
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from raylingvo.data.images import ParquetImages
from raylingvo.data.prepare import mnist, prepare
from raylingvo.errors import RequestError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture
def root(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path / "root"))
    return tmp_path / "root"


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (20, 28, 28), np.uint8),
        "y_train": rng.integers(0, 10, 20, np.uint8),
        "x_test": rng.integers(0, 256, (5, 28, 28), np.uint8),
        "y_test": rng.integers(0, 10, 5, np.uint8),
    }


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def idx_files(arrays):
    names = zip(mnist.IDX_MD5, ("x_train", "y_train", "x_test", "y_test"), strict=True)
    return {name: idx(arrays[array]) for name, array in names}


def write_idx(folder, arrays, spelling="{}"):
    folder.mkdir(exist_ok=True)
    for name, content in idx_files(arrays).items():
        file = folder / spelling.format(name)
        file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return folder


def write_npz(file, **arrays):
    np.savez_compressed(file, **arrays)
    return file


def assert_prepared(arrays):
    for split in ("train", "test"):
        source = ParquetImages(path=f"mnist/{split}.parquet", height=28, width=28, prepare="mnist").open()
        np.testing.assert_array_equal(source.image_NxHxWx1[..., 0], arrays[f"x_{split}"])
        np.testing.assert_array_equal(source.label_N, arrays[f"y_{split}"])


def refusal(from_path):
    with pytest.raises(RequestError) as error:
        prepare("mnist", from_path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_from_npz(root, tmp_path, arrays):
    lines = prepare("mnist", write_npz(tmp_path / "mnist.npz", **arrays))
    assert_prepared(arrays)
    assert lines[0].startswith(f"{root}/mnist/train.parquet: 20 images, ")
    assert lines[1].startswith(f"{root}/mnist/test.parquet: 5 images, ")
    assert sorted(file.name for file in (root / "mnist").iterdir()) == [
        "test.parquet",
        "train.parquet",
    ]  # no temporary file stays


@pytest.mark.usefixtures("root")
def test_from_npz_with_int64_labels(tmp_path, arrays):
    arrays["y_train"] = arrays["y_train"].astype(np.int64)
    prepare("mnist", write_npz(tmp_path / "mnist.npz", **arrays))
    assert_prepared(arrays)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("spelling", ["{}", "{}.gz"])
@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("one_file", [False, True])
def test_from_idx(tmp_path, arrays, spelling, dotted, one_file):
    folder = write_idx(tmp_path / "idx", arrays, spelling)
    if dotted:
        for file in list(folder.iterdir()):
            file.rename(folder / file.name.replace("-idx", ".idx"))
    prepare("mnist", sorted(folder.iterdir())[0] if one_file else folder)
    assert_prepared(arrays)


@pytest.mark.usefixtures("root")
def test_preparing_again_replaces(tmp_path, arrays):
    prepare("mnist", write_npz(tmp_path / "a.npz", **arrays))
    other = {name: values[::-1] for name, values in arrays.items()}  # not contiguous, too
    prepare("mnist", write_npz(tmp_path / "b.npz", **other))
    assert_prepared(other)


def test_a_failed_recipe_leaves_the_former_files(root, tmp_path, arrays, monkeypatch):
    prepare("mnist", write_npz(tmp_path / "a.npz", **arrays))

    def full_disk(table, file, **kwargs):
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full_disk)
    assert refusal(tmp_path / "a.npz").startswith(f"cannot write {root}/mnist/train.parquet: No space left on device")
    assert sorted(file.name for file in (root / "mnist").iterdir()) == ["test.parquet", "train.parquet"]
    assert_prepared(arrays)


@pytest.mark.usefixtures("root")
def test_a_damaged_npz_is_refused(tmp_path, arrays):
    file = tmp_path / "mnist.npz"
    file.write_text("hello")
    assert refusal(file) == f"{file} is not a readable .npz"
    write_npz(file, **arrays)
    content = bytearray(file.read_bytes())
    content[content.index(b"PK\1\2") + 10] = 99  # a compression method that there is not
    file.write_bytes(content)
    assert refusal(file) == f"{file} is not a readable .npz of plain arrays: That compression method is not supported"
    write_npz(file, **{name: arrays[name] for name in ("x_train", "y_train")})
    assert refusal(file) == f"{file} has no array x_test; it has x_train, y_train"
    write_npz(file, **{**arrays, "y_test": arrays["y_test"][:-1]})
    assert refusal(file) == f"{file}: 4 labels for the 5 images of {file}"
    write_npz(file, **{**arrays, "x_test": arrays["x_test"].astype(np.float32)})
    assert refusal(file) == f"{file}: images must be uint8[N, 28, 28] (got float32[5, 28, 28])"
    write_npz(file, **{**arrays, "x_test": arrays["x_test"][:, :14]})
    assert "(got uint8[5, 14, 28])" in refusal(file)
    write_npz(file, **{**arrays, "y_test": np.full(5, 10)})
    assert refusal(file) == f"{file}: labels must be 0 to 9 (got 10 to 10)"
    write_npz(file, **{**arrays, "y_test": np.zeros((5, 10), np.uint8)})
    assert refusal(file) == f"{file}: labels must be integers of shape [N] (got uint8[5, 10])"


@pytest.mark.usefixtures("root")
def test_damaged_bytes_in_an_npz_are_refused(tmp_path, arrays):
    file = tmp_path / "mnist.npz"
    np.savez(file, **arrays)
    content = bytearray(file.read_bytes())
    content[5000] ^= 0xFF  # inside x_train: its CRC is wrong now
    file.write_bytes(content)
    assert refusal(file).startswith(f"{file} is not a readable .npz of plain arrays: Bad CRC-32")
    file.write_bytes(content[:-1000])
    assert refusal(file) == f"{file} is not a readable .npz"


class Bomb:
    """Its pickle creates a file when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.mark.usefixtures("root")
def test_pickles_are_never_loaded(tmp_path, arrays):
    for content in (np.array([Bomb(tmp_path / "boom")], dtype=object), None):
        file = tmp_path / "mnist.npz"
        write_npz(file, **arrays)
        if content is None:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("x_train.npy", pickle.dumps(Bomb(tmp_path / "boom")))
        else:
            write_npz(file, **{**arrays, "x_train": content})
        assert str(file) in refusal(file)
        assert not (tmp_path / "boom").exists()


@pytest.mark.usefixtures("root")
def test_damaged_idx_files_are_refused(tmp_path, arrays):
    folder = write_idx(tmp_path / "idx", arrays)
    images, labels = folder / IMAGES, folder / LABELS
    good = images.read_bytes()
    for content, message in [
        (b"", "is not an IDX file of bytes: it starts with nothing"),
        (b"<html>", "is not an IDX file of bytes: it starts with 3c 68 74 6d"),
        (good[:3] + b"\x03" + good[4:10], "is not an IDX file of bytes: it starts with 00 00 08 03"),
        (good[:2] + b"\x0d" + good[3:], "is not an IDX file of bytes: it starts with 00 00 0d 03"),
        (good[:-1], "is damaged: its header announces 15680 bytes, 15679 follow"),
        (good + b"x", "is damaged: its header announces 15680 bytes, 15681 follow"),
        (good[:4] + b"\xff" * 12, "is damaged: its header announces 79228162458924105385300197375 bytes, 0 follow"),
    ]:
        images.write_bytes(content)
        assert refusal(folder) == f"{images} {message}"
    images.write_bytes(gzip.compress(good)[:-9])
    assert refusal(folder).startswith(f"{images} is a damaged gzip file: ")
    images.write_bytes(labels.read_bytes())  # swapped
    assert refusal(folder) == f"{images}: images must be uint8[N, 28, 28] (got uint8[20])"
    images.write_bytes(idx(arrays["x_train"][:7]))
    assert refusal(folder) == f"{labels}: 20 labels for the 7 images of {images}"
    images.unlink()
    assert refusal(folder) == f"--from {folder}: no {IMAGES} or {IMAGES}.gz in {folder}"


@pytest.mark.usefixtures("root")
def test_other_files_are_refused(tmp_path):
    file = tmp_path / "mnist.csv"
    file.write_text("1,2")
    assert refusal(file).startswith(f"--from {file} must be an .npz, or a folder with (or one of) {IMAGES}, ")


@pytest.fixture
def mirror(monkeypatch, tmp_path, arrays):
    """A folder that plays the second mirror; the first one is down."""
    folder = write_idx(tmp_path / "mirror", arrays, "{}.gz")
    monkeypatch.setattr(mnist, "MIRRORS", ((tmp_path / "down").as_uri() + "/", folder.as_uri() + "/"))
    md5 = {name: hashlib.md5((folder / f"{name}.gz").read_bytes()).hexdigest() for name in mnist.IDX_MD5}
    monkeypatch.setattr(mnist, "IDX_MD5", md5)
    return folder


@pytest.mark.usefixtures("root")
def test_download_goes_on_to_the_next_mirror(mirror, arrays, capsys):
    prepare("mnist")
    assert_prepared(arrays)
    output = capsys.readouterr()
    assert output.out == ""
    assert IMAGES in output.err


def test_a_wrong_checksum_is_refused(root, mirror):
    file = mirror / f"{LABELS}.gz"
    file.write_bytes(file.read_bytes() + b"\0")
    message = refusal(None)
    assert message.startswith(f"cannot download {LABELS}.gz (")
    assert f"{file.as_uri()}: MD5 is " in message
    assert not root.exists()


def test_no_network_is_one_line_that_names_the_way_out(root, mirror):
    for file in list(mirror.iterdir()):
        file.unlink()
    message = refusal(None)
    assert message.startswith(f"cannot download {IMAGES}.gz (")
    assert message.endswith("run: raylingvo data prepare mnist --from PATH")
    assert not root.exists()


@pytest.mark.data
@pytest.mark.usefixtures("root")
def test_real_mnist():
    if not (folder := os.environ.get("RAYLINGVO_TEST_DATA")):
        pytest.skip("RAYLINGVO_TEST_DATA is not set")
    file = Path(folder) / "mnist" / "mnist10k.npz"
    lines = prepare("mnist", file)
    assert ["8000 images" in lines[0], "2000 images" in lines[1]] == [True, True]
    with np.load(file) as arrays:
        assert_prepared(arrays)
