"""The one-billion-word benchmark: its shards in their order, whatever the order of the archive."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylingvo.data.prepare import lm1b, prepare

BASE = "1-billion-word-language-modeling-benchmark-r13output"
TRAIN = [f"{BASE}/training-monolingual.tokenized.shuffled/news.en-{i:05}-of-00100" for i in range(1, 100)]
HELDOUT = f"{BASE}/heldout-monolingual.tokenized.shuffled/news.en"


def shard(i):
    return [f"shard {i} , sentence {n} ." for n in range(i % 4)]  # some are empty


def shards():
    content = {name: "".join(f"{line}\n" for line in shard(i)).encode() for i, name in enumerate(TRAIN, 1)}
    for i in range(3):
        content[f"{HELDOUT}.heldout-{i:05}-of-00050"] = f"held out {i}\n".encode() * (i + 1)
    content[f"{HELDOUT}-00000-of-00100"] = b"all that is held out\n"
    return content


EXPECTED = {
    "train": [(line,) for i in range(1, 100) for line in shard(i)],
    "dev": [("held out 1",), ("held out 1",)],
    "test": [("held out 0",)],
}


@pytest.fixture
def assert_prepared(root, read_rows):
    def check(lines):
        assert {split: read_rows(root / "lm1b" / f"{split}.parquet") for split in EXPECTED} == EXPECTED
        for line, (split, rows) in zip(lines, EXPECTED.items(), strict=True):
            assert line.startswith(f"{root}/lm1b/{split}.parquet: {len(rows)} sentences, ")
        assert sorted(file.name for file in (root / "lm1b").iterdir()) == [
            "dev.parquet",
            "test.parquet",
            "train.parquet",
        ]

    return check


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("in_folder", [False, True])
def test_from_the_archive_in_any_order(tmp_path, write_tar, assert_prepared, seed, in_folder):
    names = list(shards())
    if seed is not None:
        random.Random(seed).shuffle(names)
    members = {f"{BASE}/._news.en-00001-of-00100": b"\xff", **{name: shards()[name] for name in names}}
    archive = write_tar(tmp_path / "a" / lm1b.ARCHIVE, members)
    assert_prepared(prepare("lm1b", archive.parent if in_folder else archive))


def test_from_a_folder(tmp_path, root, write_files, assert_prepared):
    folder = write_files(tmp_path / "lm1b", shards())
    assert_prepared(prepare("lm1b", folder))
    with pq.ParquetFile(root / "lm1b" / "train.parquet") as file:
        assert file.schema_arrow == pa.schema([("text", pa.string())])


def test_missing_shards_are_named(tmp_path, root, write_files, write_tar, refusal):
    some = {name: content for name, content in shards().items() if "-00007-of" not in name}
    folder = write_files(tmp_path / "lm1b", some)
    missing = f"no news.en-00007-of-00100, in folders below or in {lm1b.ARCHIVE}"
    assert refusal("lm1b", folder) == f"--from {folder}: {missing}"
    archive = write_tar(tmp_path / "a.tgz", some)
    assert refusal("lm1b", archive) == f"--from {archive}: {missing}"
    (tmp_path / "empty").mkdir()
    assert refusal("lm1b", tmp_path / "empty") == (
        f"--from {tmp_path}/empty: no news.en-00001-of-00100 and 100 more of 101 shards, in folders below or in "
        f"{lm1b.ARCHIVE}"
    )
    assert not list((root / "lm1b").iterdir())


def test_a_shard_that_is_there_twice_is_refused(tmp_path, write_files, refusal):
    folder = write_files(tmp_path / "lm1b", {"a/news.en-00001-of-00100": b"x\n", "b/news.en-00001-of-00100": b"y\n"})
    first, second = (folder / name / "news.en-00001-of-00100" for name in "ab")
    assert refusal("lm1b", folder) == f"--from {folder}: {first} or {second}? Name a folder that has one"


def test_damaged_and_other_files_are_refused(tmp_path, root, write_tar, refusal):
    archive = write_tar(tmp_path / lm1b.ARCHIVE, shards())
    archive.write_bytes(archive.read_bytes()[:-30])
    assert refusal("lm1b", archive).startswith(f"{archive}")
    (tmp_path / "lm1b.zip").touch()
    assert refusal("lm1b", tmp_path / "lm1b.zip").startswith(f"--from {tmp_path}/lm1b.zip must be {lm1b.ARCHIVE}, or ")
    assert not list((root / "lm1b").iterdir())


def test_download(tmp_path, write_tar, assert_prepared, refusal, monkeypatch, digest):
    archive = write_tar(tmp_path / "mirror" / lm1b.ARCHIVE, shards())
    monkeypatch.setattr(lm1b, "URLS", ((tmp_path / "down").as_uri() + "/", archive.parent.as_uri() + "/"))
    assert refusal("lm1b", None).endswith(
        f"get {lm1b.ARCHIVE} elsewhere and run: raylingvo data prepare lm1b --from PATH"
    )
    monkeypatch.setattr(lm1b, "SHA256", digest("sha256", archive))
    assert_prepared(prepare("lm1b"))


@pytest.mark.data
def test_real_sentences(test_data, tmp_path, root, write_files, read_rows):
    content = (test_data / "lm" / "lm1b_100.txt").read_bytes()
    prepare("lm1b", write_files(tmp_path / "lm1b", {**shards(), TRAIN[0]: content}))
    text = "".join(f"{line}\n" for (line,) in read_rows(root / "lm1b" / "train.parquet")[:100])
    assert text.encode() == content
