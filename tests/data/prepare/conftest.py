"""What the tests of recipes share: a data root, archives and gzip files made on the spot, and refusals in one line."""

import gzip
import hashlib
import io
import tarfile

import pyarrow.parquet as pq
import pytest

from raylingvo.data.prepare import prepare
from raylingvo.errors import RequestError


@pytest.fixture
def root(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path / "root"))
    return tmp_path / "root"


@pytest.fixture
def refusal():
    """refusal(recipe, from_path): the message of its RequestError, which is one line."""

    def run(name, from_path):
        with pytest.raises(RequestError) as error:
            prepare(name, from_path)
        assert "\n" not in str(error.value)
        return str(error.value)

    return run


@pytest.fixture
def write_tar():
    """write_tar(path, {member name: bytes}): a tar.gz; the path."""

    def write(path, members):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w:gz", compresslevel=1) as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return path

    return write


@pytest.fixture
def write_files():
    """write_files(folder, {path: bytes}): files, gzipped where their name ends in .gz; the folder."""

    def write(folder, files):
        for name, content in files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
        return folder

    return write


@pytest.fixture
def read_rows():
    """read_rows(file): the rows of a Parquet file, as tuples."""

    def read(file):
        table = pq.read_table(file)
        return list(zip(*(column.to_pylist() for column in table.columns), strict=True))

    return read


@pytest.fixture
def digest():
    """digest(algorithm, file): as hexadecimal."""
    return lambda algorithm, file: hashlib.new(algorithm, file.read_bytes()).hexdigest()
