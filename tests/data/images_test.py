"""The digits agree with scikit-learn's and are split without overlap; Parquet files are read exactly or refused."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylingvo.data import images
from raylingvo.data.images import Digits, ParquetImages
from raylingvo.errors import RequestError


@pytest.fixture
def root(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    return tmp_path


def test_digits_are_scikit_learns(monkeypatch):
    value_Nx8x8, label_N = images._read_digits()
    monkeypatch.setattr(images, "_digits_file", lambda: None)  # as if the file had moved: load_digits
    expected_Nx8x8, expected_N = images._read_digits()
    np.testing.assert_array_equal(value_Nx8x8, expected_Nx8x8)
    np.testing.assert_array_equal(label_N, expected_N)


def test_digits_splits_cover_every_image_once():
    train, test = Digits(split="train").open(), Digits(split="test").open()
    assert (len(train), len(test)) == (1437, 360)
    np.testing.assert_array_equal(np.sort(np.concatenate([train.id_N, test.id_N])), np.arange(1797))
    assert np.bincount(test.label_N, minlength=10).min() > 20  # every digit is tested


def test_digits_fields():
    batch = Digits(split="test").open().take(np.array([3, 0, 3]))
    assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
        "image": ("uint8", (3, 28, 28, 1)),
        "label": ("int32", (3,)),
        "id": ("int64", (3,)),
    }
    np.testing.assert_array_equal(batch["id"], [15, 0, 15])
    np.testing.assert_array_equal(batch["image"][0], batch["image"][2])
    assert batch["image"].max() == 255


def test_digits_labels_stay_with_their_images():
    _, label_N = images._read_digits()
    for split in ("train", "test"):
        source = Digits(split=split).open()
        np.testing.assert_array_equal(source.label_N, label_N[source.id_N])


def test_digits_import_nothing_heavy():
    code = (
        "import sys; from raylingvo.data.images import Digits; Digits(split='test').open(); "
        "print([m for m in ('sklearn', 'scipy', 'pyarrow', 'jax', 'ray', 'tensorflow', 'grain') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_digits_refuse_an_unknown_split():
    with pytest.raises(ValueError, match=r"split must be train or test \(got 'dev'\)"):
        Digits(split="dev")  # pyright: ignore[reportArgumentType]


def test_upsampling_keeps_constants_and_linear_ramps():
    np.testing.assert_allclose(images._upsample(np.full((1, 8, 8), 7.0), 28), 7.0)
    ramp_1x8x8 = np.broadcast_to(np.arange(8.0), (1, 8, 8))
    centres = (np.arange(28) + 0.5) * 8 / 28 - 0.5
    expected = np.broadcast_to(np.clip(centres, 0, 7), (1, 28, 28))
    np.testing.assert_allclose(images._upsample(ramp_1x8x8, 28), expected)
    np.testing.assert_allclose(images._upsample(ramp_1x8x8.mT, 28), expected.mT)


def test_upsampling_to_the_same_size_is_the_identity():
    image_NxSxS = np.random.default_rng(0).random((3, 8, 8))
    np.testing.assert_allclose(images._upsample(image_NxSxS, 8), image_NxSxS)


def write(file, image_NxHxW, label_N, **kwargs):
    rows = [image.tobytes() for image in image_NxHxW]
    pixels = image_NxHxW[0].size
    table = pa.table({"image": pa.array(rows, pa.binary(pixels)), "label": pa.array(label_N, pa.int64())})
    pq.write_table(table, file, **kwargs)


def test_parquet_images_come_back_exactly(root):
    rng = np.random.default_rng(0)
    image_NxHxW = rng.integers(0, 256, (50, 4, 3), np.uint8)
    label_N = rng.integers(0, 10, 50)
    write(root / "x.parquet", image_NxHxW, label_N, row_group_size=7)  # several chunks
    source = ParquetImages(path="x.parquet", height=4, width=3).open()
    assert len(source) == 50
    index_B = rng.permutation(50)
    batch = source.take(index_B)
    np.testing.assert_array_equal(batch["image"][..., 0], image_NxHxW[index_B])
    np.testing.assert_array_equal(batch["label"], label_N[index_B])
    np.testing.assert_array_equal(batch["id"], index_B)
    assert [batch[k].dtype.name for k in ("image", "label", "id")] == ["uint8", "int32", "int64"]


def test_fixed_size_bytes_respect_slices():
    values = pa.array([b"ab", b"cd", b"ef"], pa.binary(2))
    column = pa.chunked_array([values.slice(1), values.slice(0, 0), values.slice(0, 1)])
    assert images._fixed_size_bytes(column).tobytes() == b"cdefab"


@pytest.mark.parametrize("method", ["check", "open"])
def test_a_missing_file_names_the_recipe(root, method):
    dataset = ParquetImages(path="mnist/train.parquet", height=28, width=28, prepare="mnist")
    with pytest.raises(RequestError) as error:
        getattr(dataset, method)()
    assert str(error.value) == (
        f"mnist/train.parquet not found under RAYLINGVO_DATA={root}; run: raylingvo data prepare mnist"
    )


def test_damaged_or_foreign_files_are_refused_in_one_line(root):
    image_NxHxW = np.zeros((2, 4, 3), np.uint8)
    write(root / "size.parquet", image_NxHxW, [1, 2])
    write(root / "nulls.parquet", image_NxHxW, [1, None])
    pq.write_table(pa.table({"label": [1]}), root / "column.parquet")
    pq.write_table(
        pa.table({"image": pa.array([], pa.binary(12)), "label": pa.array([], pa.int64())}), root / "empty.parquet"
    )
    (root / "text.parquet").write_text("not Parquet")
    for name, width, message in [
        ("size", 4, r"column 'image' is fixed_size_binary\[12\], not fixed_size_binary\[16\]"),
        ("nulls", 3, "column 'label' has 1 nulls"),
        ("column", 3, "has no column 'image'"),
        ("empty", 3, "has no rows"),
        ("text", 3, "is not a readable Parquet file"),
    ]:
        dataset = ParquetImages(path=f"{name}.parquet", height=4, width=width, prepare="own")
        dataset.check()
        with pytest.raises(RequestError, match=message) as error:
            dataset.open()
        assert f"{name}.parquet" in str(error.value)
        assert str(error.value).endswith("; run: raylingvo data prepare own")
        assert "\n" not in str(error.value)


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match=r"width must be >= 1 \(got 0\)"):
        ParquetImages(path="x", height=1, width=0)
