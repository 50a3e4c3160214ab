"""MNIST, from its four IDX files or an .npz, to Parquet files of images and labels.

Source, and the IDX format: http://yann.lecun.com/exdb/mnist
"""

from __future__ import annotations

import gzip
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from raylingvo.data.prepare import _download
from raylingvo.data.prepare._parquet import atomic
from raylingvo.errors import RequestError

# split -> (images, labels) u8[N, 28, 28], u8[N].
Splits = Mapping[str, tuple[np.ndarray, np.ndarray]]

# The official files, and the MD5 of their .gz form.
IDX_MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
# The author's own site no longer serves them.
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_SIZE = 28
_NUM_CLASSES = 10


def prepare(from_path: Path | None, root: Path) -> list[str]:
    """Writes `mnist/train.parquet` and `mnist/test.parquet` under `root`, atomically; a line for each.

    from_path: an .npz with x_train, y_train, x_test, y_test; or a folder with the four IDX files, or one of the four;
    each gzipped or not, of any number of images. None: downloads the official files and verifies their checksums.
    Raises RequestError, naming the file, if one is missing or damaged, or there is no network.
    """
    if from_path is None:
        splits = _from_idx({name: (name, content) for name, content in _fetch()})
    elif from_path.suffix == ".npz":
        splits = _from_npz(from_path)
    else:
        splits = _from_idx({name: (str(file), _read(file)) for name, file in _find_idx(from_path).items()})
    return [_write(root / "mnist" / f"{split}.parquet", *arrays) for split, arrays in splits.items()]


def _from_npz(file: Path) -> Splits:
    if not zipfile.is_zipfile(file):
        raise RequestError(f"{file} is not a readable .npz")
    arrays: dict[str, np.ndarray] = {}
    try:
        # Pickled arrays are refused: loading them would run code of whoever made the file.
        with np.load(file, allow_pickle=False) as npz:
            for name in ("x_train", "y_train", "x_test", "y_test"):
                if name not in npz:
                    raise RequestError(f"{file} has no array {name}; it has {', '.join(npz) or 'none'}")
                arrays[name] = npz[name]
    except RequestError:
        raise
    # zipfile and NumPy raise what a damaged header happens to make (NotImplementedError, TokenError, ...).
    except Exception as e:
        raise RequestError(f"{file} is not a readable .npz of plain arrays: {e}") from e
    return {
        split: _checked(str(file), arrays[f"x_{split}"], str(file), arrays[f"y_{split}"]) for split in ("train", "test")
    }


def _from_idx(files: Mapping[str, tuple[str, bytes]]) -> Splits:
    """files: official name -> (the name for error messages, content, gzipped or not)."""
    arrays = {name: (where, _parse_idx(where, content)) for name, (where, content) in files.items()}
    return {
        split: _checked(*arrays[f"{prefix}-images-idx3-ubyte"], *arrays[f"{prefix}-labels-idx1-ubyte"])
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }


def _find_idx(path: Path) -> dict[str, Path]:
    """Official name -> file, next to or in `path`. Files unpacked by some tools have a dot before `idx`."""
    spellings = {
        name: [stem + end for stem in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")] for name in IDX_MD5
    }
    if path.is_dir():
        folder = path
    elif any(path.name in names for names in spellings.values()):
        folder = path.parent
    else:
        raise RequestError(
            f"--from {path} must be an .npz, or a folder with (or one of) {', '.join(IDX_MD5)}, .gz or not"
        )
    found: dict[str, Path] = {}
    for name, names in spellings.items():
        files = [folder / spelling for spelling in names if (folder / spelling).is_file()]
        if not files:
            raise RequestError(f"--from {path}: no {name} or {name}.gz in {folder}")
        found[name] = files[0]
    return found


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as e:
        raise RequestError(f"cannot read {file}: {e.strerror}") from e


def _parse_idx(where: str, content: bytes) -> np.ndarray:
    """The u8 array of an IDX file: two zeros, type 8, rank, each dimension as big-endian u32, then the values."""
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as e:
            raise RequestError(f"{where} is a damaged gzip file: {e}") from e
    rank = content[3] if len(content) >= 4 else 0
    if content[:3] != b"\0\0\x08" or not 1 <= rank <= 3 or len(content) < 4 + 4 * rank:
        raise RequestError(f"{where} is not an IDX file of bytes: it starts with {content[:4].hex(' ') or 'nothing'}")
    shape = struct.unpack_from(f">{rank}I", content, 4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    expected = int(np.prod(shape, dtype=object))
    if len(values) != expected:
        raise RequestError(f"{where} is damaged: its header announces {expected} bytes, {len(values)} follow")
    return values.reshape(shape)


def _checked(images_in: str, images: np.ndarray, labels_in: str, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """images u8[N, 28, 28] and labels u8[N] in 0..9, or RequestError. The names are those of their files."""
    if images.dtype != np.uint8 or images.shape[1:] != (_SIZE, _SIZE) or not len(images):
        raise RequestError(
            f"{images_in}: images must be uint8[N, {_SIZE}, {_SIZE}] (got {images.dtype}{[*images.shape]})"
        )
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise RequestError(f"{labels_in}: labels must be integers of shape [N] (got {labels.dtype}{[*labels.shape]})")
    if len(images) != len(labels):
        raise RequestError(f"{labels_in}: {len(labels)} labels for the {len(images)} images of {images_in}")
    if labels.min() < 0 or labels.max() >= _NUM_CLASSES:
        raise RequestError(f"{labels_in}: labels must be 0 to 9 (got {labels.min()} to {labels.max()})")
    return images, labels.astype(np.uint8)


def _fetch() -> Iterator[tuple[str, bytes]]:
    """Official name, content of the .gz, of each file."""
    otherwise = "get an mnist.npz or the four IDX files elsewhere and run: raylingvo data prepare mnist --from PATH"
    for name, md5 in IDX_MD5.items():
        urls = tuple(f"{mirror}{name}.gz" for mirror in MIRRORS)
        published = _download.Published(name=f"{name}.gz", urls=urls, checksum=f"md5:{md5}")
        yield name, _download.content(published, otherwise)


def _write(file: Path, images: np.ndarray, labels: np.ndarray) -> str:
    """Writes one Parquet file, whole or not at all: image fixed_size_binary[784], label int64."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    n, pixels = len(images), _SIZE * _SIZE
    image = pa.Array.from_buffers(pa.binary(pixels), n, [None, pa.py_buffer(np.ascontiguousarray(images))])
    table = pa.table({"image": image, "label": pa.array(labels, pa.int64())})
    with atomic(file) as temporary:
        pq.write_table(table, temporary, compression="zstd", use_dictionary=False)
    return f"{file}: {n} images, {file.stat().st_size / 1e6:.1f} MB"
