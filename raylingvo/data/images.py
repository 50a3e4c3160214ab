"""Datasets of small grey images that fit in memory: scikit-learn's digits, and images in a Parquet file."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raylingvo.data import paths
from raylingvo.data.dataset import FixedShapeDataset
from raylingvo.errors import RequestError

if TYPE_CHECKING:
    import pyarrow as pa

# N images, B of them in a batch, H rows of W pixels.

_DIGITS_SIZE = 28  # MNIST's, so that LeNet-5 reads either


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImages:
    """The Source of this module: images and labels in memory.

    image_NxHxWx1: u8, 0 is background. label_N: i32. id_N: i64, row numbers in the dataset as published, so that an
    output can be traced to its image whatever the split.
    """

    image_NxHxWx1: np.ndarray
    label_N: np.ndarray
    id_N: np.ndarray

    def __len__(self) -> int:
        return len(self.label_N)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """image u8[B, H, W, 1], label i32[B], id i64[B] of `indices` (i64[B])."""
        return {"image": self.image_NxHxWx1[indices], "label": self.label_N[indices], "id": self.id_N[indices]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits(FixedShapeDataset):
    """The 1,797 handwritten digits that ship inside scikit-learn, as u8[28, 28, 1]: the dataset that is always there.

    They are the test part of UCI's optdigits (https://archive.ics.uci.edu/dataset/80): 8x8 images of values 0..16, by
    13 writers. Upsampled bilinearly, and scaled so that 16 becomes 255. `test` is 360 of them, `train` the other 1,437.
    """

    in_memory = True
    split: Literal["train", "test"]

    def __post_init__(self) -> None:
        if self.split not in ("train", "test"):
            raise ValueError(f"split must be train or test (got {self.split!r})")

    def open(self) -> LabelledImages:
        """The images of the split, in the order of the dataset."""
        value_Nx8x8, label_N = _read_digits()
        # Neighbours are by the same writer: every fifth image holds out the same share of each writer (and 26 to 48
        # of each digit), the last fifth of the file would be a few writers. So `test` has new images, not new writers.
        # https://inria.github.io/scikit-learn-mooc/python_scripts/cross_validation_grouping.html shows the difference.
        id_N = np.arange(len(label_N), dtype=np.int64)
        id_N = id_N[(id_N % 5 == 0) == (self.split == "test")]
        image_NxHxW = np.rint(_upsample(value_Nx8x8[id_N], _DIGITS_SIZE) * (255 / 16)).astype(np.uint8)
        return LabelledImages(image_NxHxW[..., None], label_N[id_N], id_N)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParquetImages(FixedShapeDataset):
    """Images from a Parquet file with the columns `image`, fixed_size_binary[height * width] of u8, and `label`, int64.

    path: relative to RAYLINGVO_DATA. prepare: the recipe that writes it (`raylingvo data prepare ...`), for the error
    message; empty if there is none.
    """

    in_memory = True
    path: str
    height: int
    width: int
    prepare: str = ""

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")

    def check(self) -> None:
        if not paths.resolve(self.path).is_file():
            raise paths.not_found(self.path, self.prepare)

    def open(self) -> LabelledImages:
        """Raises RequestError if the file is missing, not Parquet, empty, or of other columns or sizes."""
        self.check()
        table = self._read()
        image_NxHxWx1 = _fixed_size_bytes(table["image"]).reshape(-1, self.height, self.width, 1)
        label_N = table["label"].to_numpy().astype(np.int32)
        return LabelledImages(image_NxHxWx1, label_N, np.arange(len(label_N), dtype=np.int64))

    def _read(self) -> pa.Table:
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = paths.resolve(self.path)
        try:
            with pq.ParquetFile(file) as parquet:
                table = parquet.read(columns=["image", "label"])
        except (pa.ArrowException, OSError) as e:
            raise RequestError(f"{file} is not a readable Parquet file: {_first_line(e)}{self._fix()}") from e
        expected = {"image": pa.binary(self.height * self.width), "label": pa.int64()}
        for name, type_ in expected.items():
            if name not in table.column_names:
                raise RequestError(f"{file} has no column {name!r}{self._fix()}")
            if table[name].type != type_:
                raise RequestError(f"{file}: column {name!r} is {table[name].type}, not {type_}{self._fix()}")
            if table[name].null_count:
                raise RequestError(f"{file}: column {name!r} has {table[name].null_count} nulls{self._fix()}")
        if not table.num_rows:
            raise RequestError(f"{file} has no rows{self._fix()}")
        return table

    def _fix(self) -> str:
        return f"; run: raylingvo data prepare {self.prepare}" if self.prepare else ""


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """value f64[1797, 8, 8] in 0..16, label i32[1797]."""
    if file := _digits_file():
        row_Nx65 = np.loadtxt(file, delimiter=",")
        value_Nx64, label_N = row_Nx65[:, :-1], row_Nx65[:, -1]
    else:
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        value_Nx64, label_N = np.asarray(digits["data"]), np.asarray(digits["target"])
    return value_Nx64.reshape(-1, 8, 8), label_N.astype(np.int32)


def _digits_file() -> Path | None:
    """Where scikit-learn keeps the digits; None: not there. Reading takes 16 ms, importing sklearn.datasets 2.4 s."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    return file if file.is_file() else None


def _upsample(image_NxSxS: np.ndarray, size: int) -> np.ndarray:
    """Bilinear interpolation to f64[N, size, size]; pixels are squares, sampled at their centres, edges repeat."""
    s = image_NxSxS.shape[-1]
    centres = (np.arange(size) + 0.5) * (s / size) - 0.5
    weight_sizexS = np.stack([np.interp(centres, np.arange(s), row) for row in np.eye(s)], axis=1)
    return weight_sizexS @ image_NxSxS @ weight_sizexS.T


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _fixed_size_bytes(column: pa.ChunkedArray) -> np.ndarray:
    """u8[N, size] of a fixed_size_binary[size] column without nulls, which pyarrow itself gives as N bytes objects."""
    size = column.type.byte_width
    rows = [np.frombuffer(c.buffers()[1], np.uint8, len(c) * size, c.offset * size) for c in column.chunks if len(c)]
    return np.concatenate(rows).reshape(-1, size)
