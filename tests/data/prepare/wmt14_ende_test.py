"""WMT14 from its archives or what was in them: the pairs that clean-corpus-n.perl keeps, and all of dev and test."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.prepare import prepare, wmt14_ende

TRAIN = {
    "commoncrawl": [("A  dog\u00a0barks .", " Ein Hund bellt . "), ("x", ""), (" ", "y"), ("A\u2028cat", "Eine Katze")],
    "europarl-v7": [("Resumption", "Wiederaufnahme"), ("one " * 101, "eins"), ("one", "eins " * 10)],
    "news-commentary-v9": [("a | b", "a | b"), ("x" * 1001, "y"), ("one " * 100, "eins " * 12)],
}
KEPT = [
    ("A dog barks .", "Ein Hund bellt ."),
    ("A cat", "Eine Katze"),
    ("Resumption", "Wiederaufnahme"),
    ("a | b", "a | b"),
    (("one " * 100).strip(), ("eins " * 12).strip()),
]
DEV = [("A house .", "Ein Haus ."), ("", "y"), ("z " * 200, "")]
TEST = [("A &amp; B", "A & B"), ("two lines", "zwei Zeilen")]
FULL = [*TEST, ("more", "mehr")]


def text(rows, i):
    return "".join(f"{row[i]}\n" for row in rows).encode()


def sgm(rows, i):
    docs = "".join(f'<seg id="{n}"> {row[i]} </seg>\n' for n, row in enumerate(rows))
    docs = docs.replace("two lines", "two\n   lines").replace("zwei Zeilen", "zwei \nZeilen\n")
    return (
        f'<srcset setid="newstest2014" srclang="any">\n<doc sysid="ref">\n<hl>\n{docs}</hl></doc></srcset>\n'.encode()
    )


def pair(name, rows, form=text, names=("en", "de")):
    return {name.format(language): form(rows, i) for i, language in enumerate(names)}


SGM_2014 = ("src.en", "ref.de")


def archives():
    """Archive -> its members, in the order that ls gives: German first."""
    content = {
        "training-parallel-commoncrawl.tgz": pair("commoncrawl.de-en.{}", TRAIN["commoncrawl"]),
        "training-parallel-europarl-v7.tgz": pair("training/europarl-v7.de-en.{}", TRAIN["europarl-v7"]),
        "training-parallel-nc-v9.tgz": pair("training/news-commentary-v9.de-en.{}", TRAIN["news-commentary-v9"]),
        "dev.tgz": pair("dev/newstest2013.{}", DEV),
        "test-filtered.tgz": pair("test/newstest2014-deen-{}.sgm", TEST, sgm, SGM_2014),
        "test-full.tgz": pair("test-full/newstest2014-deen-{}.sgm", FULL, sgm, SGM_2014),
    }
    noise = {"training/europarl-v7.cs-en.en": b"\xff", "test/newstest2014-deen-src.de.sgm": b"\xff"}
    return {archive: dict(sorted((members | noise).items())) for archive, members in content.items()}


def unpacked(folder=""):
    members = {name: content for group in archives().values() for name, content in group.items()}
    return {folder + name: content for name, content in members.items() if content != b"\xff"}


@pytest.fixture
def assert_prepared(root, read_rows):
    def check(lines, test=TEST):
        rows = {split: read_rows(root / "wmt14_ende" / f"{split}.parquet") for split in ("train", "dev", "test")}
        assert rows == {"train": KEPT, "dev": DEV, "test": test}
        assert lines[0].startswith(f"{root}/wmt14_ende/train.parquet: 5 pairs, ")
        assert lines[0].endswith(
            "; 5 dropped: 2 with an empty side, 1 of over 100 tokens, 1 of lengths over 9:1, "
            "1 with a token of over 1000 characters"
        )
        assert lines[1].startswith(f"{root}/wmt14_ende/dev.parquet: 3 pairs, ")
        assert lines[2].startswith(f"{root}/wmt14_ende/test.parquet: {len(test)} pairs, ")
        names = ["dev.parquet", "test.parquet", "train.parquet", "wmt14_ende"]
        assert sorted(file.name for file in root.rglob("*")) == names

    return check


@pytest.fixture
def downloads(tmp_path, write_tar):
    for archive, members in archives().items():
        write_tar(tmp_path / "downloads" / archive, members)
    return tmp_path / "downloads"


@pytest.mark.parametrize("one_file", [False, True])
def test_from_archives(downloads, assert_prepared, one_file):
    assert_prepared(prepare("wmt14_ende", downloads / "dev.tgz" if one_file else downloads))


def test_from_archives_with_the_full_test_set(downloads, assert_prepared):
    (downloads / "test-filtered.tgz").unlink()
    assert_prepared(prepare("wmt14_ende", downloads), FULL)


@pytest.mark.parametrize("folder", ["", "unpacked/"])
def test_from_what_was_in_them(tmp_path, write_files, assert_prepared, folder):
    assert_prepared(prepare("wmt14_ende", write_files(tmp_path / "wmt", unpacked(folder))))


def test_from_gzipped_files_and_plain_newstest(tmp_path, write_files, assert_prepared):
    files = {f"{name}.gz": content for name, content in unpacked().items() if "newstest" not in name}
    files |= pair("a/newstest2013.{}", DEV) | pair("b/newstest2014.{}", TEST)
    assert_prepared(prepare("wmt14_ende", write_files(tmp_path / "wmt", files)))


def test_from_some_of_each(downloads, write_files, assert_prepared):
    for name in ("training-parallel-commoncrawl.tgz", "dev.tgz", "test-filtered.tgz", "test-full.tgz"):
        (downloads / name).unlink()
    files = pair("commoncrawl.de-en.{}", TRAIN["commoncrawl"])
    files |= pair("newstest2013-{}.sgm", DEV, sgm, SGM_2014) | pair("newstest2014-deen-{}.sgm", TEST, sgm, SGM_2014)
    with pytest.raises(AssertionError, match="z z z"):  # a <seg> has no spaces at its end
        assert_prepared(prepare("wmt14_ende", write_files(downloads, files)))
    files |= pair("newstest2013.{}", DEV)  # goes before the .sgm
    assert_prepared(prepare("wmt14_ende", write_files(downloads, files)))


def test_a_folder_with_both_test_sets_gives_the_filtered_one(tmp_path, write_files, assert_prepared):
    files = unpacked() | pair("test-full/newstest2014-deen-{}.sgm", FULL, sgm, SGM_2014)
    folder = write_files(tmp_path / "wmt", files)
    assert_prepared(prepare("wmt14_ende", folder))


tokens = st.lists(st.sampled_from(["a", "\u00e4", "x" * 1000, "x" * 1001]), max_size=12)


@settings(max_examples=100, deadline=None)
@given(tokens, tokens, st.integers(1, 12), st.integers(1, 12))
def test_the_filter_is_that_of_moses(en, de, en_times, de_times):
    en, de = en * en_times, de * de_times
    # The conditions of clean-corpus-n.perl, in its order.
    kept = (
        bool(en and de)
        and 1 <= len(en) <= 100
        and 1 <= len(de) <= 100
        and len(en) / len(de) <= 9
        and len(de) / len(en) <= 9
        and not any(len(token) > 1000 for token in en + de)
    )
    assert wmt14_ende._fault(en, de) == "" or not kept
    assert wmt14_ende._fault(en, de) != "" or kept


def test_nothing_dropped_is_said_too(tmp_path, write_files):
    files = unpacked()
    for name in files:
        if "de-en" in name:
            files[name] = b"a b\n"
    assert prepare("wmt14_ende", write_files(tmp_path / "wmt", files))[0].endswith("; none dropped")


def test_what_is_missing_is_named(downloads, root, refusal):
    (downloads / "training-parallel-nc-v9.tgz").unlink()
    assert refusal("wmt14_ende", downloads) == (
        f"--from {downloads}: no news-commentary-v9.de-en.en with news-commentary-v9.de-en.de (.gz or not); "
        "and no training-parallel-nc-v9.tgz"
    )
    assert not root.exists()


def test_a_cut_sgm_is_refused(tmp_path, write_files, refusal):
    files = unpacked()
    name = "test/newstest2014-deen-ref.de.sgm"
    files[name] = files[name][: files[name].rindex(b"Zeilen")]
    folder = write_files(tmp_path / "wmt", files)
    message = f"{folder}/{name} is damaged or cut short: a <seg> without its </seg>"
    assert refusal("wmt14_ende", folder) == message


def test_a_cut_archive_leaves_nothing(downloads, root, refusal):
    archive = downloads / "dev.tgz"
    archive.write_bytes(archive.read_bytes()[:-20])
    assert refusal("wmt14_ende", downloads).startswith(f"{archive}")
    assert not list((root / "wmt14_ende").iterdir())


def test_download(downloads, root, assert_prepared, refusal, monkeypatch, digest, capsys):
    urls = [(downloads / url.rpartition("/")[2]) for url in wmt14_ende.CHECKSUMS]
    checksums = {file.as_uri().removeprefix("file://"): f"md5:{digest('md5', file)}" for file in urls}
    monkeypatch.setattr(wmt14_ende, "CHECKSUMS", checksums)
    monkeypatch.setattr(wmt14_ende, "PROTOCOLS", ("unknown://", "file://"))
    assert_prepared(prepare("wmt14_ende"))
    assert "downloading training-parallel-europarl-v7.tgz\n" in capsys.readouterr().err
    for file in urls:
        file.unlink()
    message = refusal("wmt14_ende", None)
    assert message.startswith("cannot download training-parallel-europarl-v7.tgz (")
    assert message.endswith("elsewhere and run: raylingvo data prepare wmt14_ende --from PATH")
