"""Multi30k from every form it comes in gives the same pairs; what is missing or does not fit is refused in one line."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.prepare import multi30k, prepare

SPLITS = {"train": "train", "dev": "val", "test": "test_2016_flickr"}
ROWS = {
    "train": [("A dog.", "Ein Hund."), ("Two  dogs. ", "Zwei Hunde."), ("", ""), ("\u2028A\x85cat", "Eine Katze")],
    "dev": [("A house.", "Ein Haus.")],
    "test": [("A tree.", "Ein Baum."), ("A man\u00a0and", "Ein Mann")],
}


def files(spelling="{}", test="test_2016_flickr"):
    names = {**SPLITS, "test": test}
    return {
        spelling.format(f"{names[split]}.{language}"): "".join(f"{row[i]}\n" for row in rows).encode()
        for split, rows in ROWS.items()
        for i, language in enumerate(("en", "de"))
    }


@pytest.fixture
def assert_prepared(root, read_rows):
    def check(lines):
        assert {split: read_rows(root / "multi30k" / f"{split}.parquet") for split in ROWS} == ROWS
        counts = zip(lines, ("train", "dev", "test"), (4, 1, 2), strict=True)
        assert all(line.startswith(f"{root}/multi30k/{split}.parquet: {n} pairs, ") for line, split, n in counts)
        assert sorted(file.name for file in root.rglob("*")) == [
            "dev.parquet",
            "multi30k",
            "test.parquet",
            "train.parquet",
        ]

    return check


@pytest.mark.parametrize("spelling", ["{}", "{}.gz", "data/task1/raw/{}.gz"])
def test_from_a_folder(tmp_path, write_files, assert_prepared, spelling):
    folder = write_files(tmp_path / "m", {**files(spelling), "data/task1/tok/train.lc.norm.tok.en": b"other"})
    assert_prepared(prepare("multi30k", folder))


def test_from_one_of_the_files(tmp_path, write_files, assert_prepared):
    folder = write_files(tmp_path / "m", files("{}.gz"))
    assert_prepared(prepare("multi30k", folder / "val.de.gz"))


@pytest.mark.parametrize("test", ["test", "test2016"])
def test_from_the_archives_of_wmt16(tmp_path, write_tar, assert_prepared, test):
    content = files("./{}", test)
    for archive, start in (("training", "./train"), ("validation", "./val"), ("mmt16_task1_test", "./test")):
        members = {name: text for name, text in content.items() if name.startswith(start)}
        write_tar(tmp_path / "m" / f"{archive}.tar.gz", {"._x": b"", **dict(sorted(members.items()))})
    assert_prepared(prepare("multi30k", tmp_path / "m"))


def test_windows_line_ends_and_a_last_row_without_text(tmp_path, write_files, assert_prepared):
    content = {name: text.replace(b"\n", b"\r\n") + b"\r\n" for name, text in files().items()}
    assert_prepared(prepare("multi30k", write_files(tmp_path / "m", content)))


def test_the_schema_and_the_row_groups(tmp_path, root, write_files):
    content = files()
    for language in ("en", "de"):
        content[f"train.{language}"] = "".join(f"{language}{i}\n" for i in range(10_000)).encode()
    prepare("multi30k", write_files(tmp_path / "m", content))
    with pq.ParquetFile(root / "multi30k" / "train.parquet") as file:
        assert file.schema_arrow == pa.schema([("en", pa.string()), ("de", pa.string())])
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4096, 4096, 1808]
        assert file.read_row_group(1).slice(0, 1).to_pylist() == [{"en": "en4096", "de": "de4096"}]


texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\n\r"), max_size=9)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=9).filter(lambda rows: any(rows[-1])))
def test_any_text_comes_through(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("m")
    for name in ("train", "val", "test"):
        for i, language in enumerate(("en", "de")):
            (folder / f"{name}.{language}").write_bytes("".join(f"{row[i]}\n" for row in rows).encode())
    multi30k.prepare(folder, folder)
    for split in ("train", "dev", "test"):
        table = pq.read_table(folder / "multi30k" / f"{split}.parquet")
        assert [*zip(table["en"].to_pylist(), table["de"].to_pylist(), strict=True)] == rows


def test_what_is_missing_is_named(tmp_path, root, write_files, refusal):
    folder = write_files(tmp_path / "m", files())
    (folder / "val.de").unlink()
    assert refusal("multi30k", folder) == (
        f"--from {folder}: no val.en with val.de (.gz or not), only {folder}/val.en; and no validation.tar.gz"
    )
    (folder / "val.en").unlink()
    assert refusal("multi30k", folder) == (
        f"--from {folder}: no val.en with val.de (.gz or not); and no validation.tar.gz"
    )
    assert not root.exists()


def test_two_of_a_kind_are_refused(tmp_path, write_files, refusal):
    folder = write_files(tmp_path / "m", {**files("a/{}"), "b/train.en": b"x\n"})
    message = f"--from {folder}: {folder}/a/train.en or {folder}/b/train.en? Name a folder that has one of them"
    assert refusal("multi30k", folder) == message


@pytest.mark.parametrize("language", ["en", "de"])
def test_numbers_of_lines_that_differ_are_refused(tmp_path, root, write_files, refusal, language):
    content = files()
    content[f"val.{language}"] += b"more\nand\nmore\n"
    folder = write_files(tmp_path / "m", content)
    other = {"en": "de", "de": "en"}[language]
    assert refusal("multi30k", folder) == (
        f"{folder}/val.{language} has 4 lines, {folder}/val.{other} has 1: they are no translations by line"
    )
    assert not list((root / "multi30k").iterdir())  # not train either


def test_a_failed_recipe_leaves_the_former_files(tmp_path, root, write_files, refusal, assert_prepared):
    lines = prepare("multi30k", write_files(tmp_path / "m", files()))
    refusal(
        "multi30k", write_files(tmp_path / "n", {**files(), "train.en": b"other\n" * 4, "test_2016_flickr.de": b""})
    )
    assert_prepared(lines)


def test_damaged_files_are_refused(tmp_path, write_files, write_tar, refusal):
    folder = write_files(tmp_path / "m", files("{}.gz"))
    whole = (folder / "val.en.gz").read_bytes()
    (folder / "val.en.gz").write_bytes(whole[:-9])
    assert refusal("multi30k", folder).startswith(f"{folder}/val.en.gz is damaged or cut short: ")
    (folder / "val.en.gz").write_bytes(gzip.compress(b"M\xfcnchen\n"))
    assert refusal("multi30k", folder).startswith(f"{folder}/val.en.gz is not UTF-8: line 1: ")
    (folder / "val.en.gz").unlink()
    archive = write_tar(folder / "validation.tar.gz", {"val.en": b"x\n" * 99, "val.de": b"x\n" * 99})
    archive.write_bytes(archive.read_bytes()[:-9])
    assert refusal("multi30k", folder).startswith(f"{archive} is damaged or cut short: ")
    write_tar(archive, {"val.en": b"x\n"})
    assert refusal("multi30k", folder) == f"{archive} has no val.en and val.de"


def test_empty_files_are_refused(tmp_path, root, write_files, refusal):
    folder = write_files(tmp_path / "m", {**files(), "train.en": b"", "train.de": b""})
    assert refusal("multi30k", folder) == f"--from {folder}: no pair of sentences for {root}/multi30k/train.parquet"


@pytest.fixture
def mirror(monkeypatch, tmp_path, write_files, digest):
    folder = write_files(tmp_path / "mirror", files("{}.gz"))
    monkeypatch.setattr(multi30k, "URL", folder.as_uri() + "/")
    monkeypatch.setattr(multi30k, "MD5", {name: digest("md5", folder / name) for name in multi30k.MD5})
    return folder


@pytest.mark.usefixtures("mirror")
def test_download(assert_prepared, capsys):
    assert_prepared(prepare("multi30k"))
    output = capsys.readouterr()
    assert output.out == ""
    assert "downloading test_2016_flickr.de.gz\n" in output.err


def test_a_wrong_checksum_or_no_network_is_one_line_with_a_way_out(mirror, root, refusal):
    file = mirror / "val.de.gz"
    file.write_bytes(gzip.compress(b"another\n"))
    message = refusal("multi30k", None)
    assert message.startswith(f"cannot download val.de.gz ({file.as_uri()}: MD5 is ")
    assert message.endswith("elsewhere and run: raylingvo data prepare multi30k --from PATH")
    file.unlink()
    assert refusal("multi30k", None).startswith("cannot download val.de.gz (")
    assert not (root / "multi30k").exists()


@pytest.mark.data
def test_real_multi30k(test_data, root, read_rows, digest):
    folder = test_data / "multi30k"
    lines = prepare("multi30k", folder)
    assert [line.split(": ")[1].split(",")[0] for line in lines] == ["29000 pairs", "1014 pairs", "1000 pairs"]
    for split, name in SPLITS.items():
        sides = zip(*read_rows(root / "multi30k" / f"{split}.parquet"), strict=True)
        for language, texts in zip(("en", "de"), sides, strict=True):
            published = gzip.decompress((folder / f"{name}.{language}.gz").read_bytes())
            assert "".join(f"{text}\n" for text in texts).encode() == published
    # They are the published ones, so the checksums are right.
    assert {name: digest("md5", folder / name) for name in multi30k.MD5} == multi30k.MD5
