"""What is read is what was written, or a RequestError: never less, and never a file beside the archive."""

import contextlib
import gzip
import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.data.prepare._sources import MAX_LINE_BYTES, Source, members, opened
from raylingvo.errors import RequestError

small = settings(max_examples=50, deadline=None)
# Everything but line ends; str.splitlines would break at some of them.
sentences = st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\n\r"), max_size=30))


def read(archive):
    with contextlib.closing(members(archive)) as listed:
        return {str(path): source.read(1 << 20) for path, source in listed}


@small
@given(sentences, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_lines_end_at_line_feeds_only(texts, end, last_end):
    content = end.join(texts).encode() + (end.encode() if last_end and texts else b"")
    expected = texts if last_end or not texts or texts[-1] else texts[:-1]
    assert [*Source(io.BytesIO(content), "x").lines()] == expected


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_gzip_is_known_by_its_content(tmp_path, name):
    for content in (b"ein Satz\n" * 1000, gzip.compress(b"ein Satz\n" * 1000)):
        (tmp_path / name).write_bytes(content)
        with opened(tmp_path / name) as source:
            assert [*source.lines()] == ["ein Satz"] * 1000


def test_the_bytes_read_are_reported(tmp_path):
    (tmp_path / "a").write_bytes(bytes(3_000_000))
    reports = []
    with opened(tmp_path / "a", reports.append) as source:
        source.read(3_000_000)
    assert reports[-1] == 3_000_000


def test_a_gzip_file_cut_at_any_byte_is_refused(tmp_path):
    content = gzip.compress(b"one\ntwo\n")
    file = tmp_path / "a.gz"
    for size in range(2, len(content)):
        file.write_bytes(content[:size])
        with pytest.raises(RequestError, match=r"^.*/a\.gz is damaged or cut short: "), opened(file) as source:
            list(source.lines())


def test_text_that_is_not_utf8_is_refused_by_line(tmp_path):
    (tmp_path / "a").write_bytes("gut\nMünchen\n".encode("latin-1"))
    with (
        pytest.raises(RequestError, match="a is not UTF-8: line 2: invalid start byte at byte 1"),
        opened(tmp_path / "a") as source,
    ):
        list(source.lines())


def test_a_line_without_end_is_refused_before_it_fills_the_memory():
    class Endless(io.BytesIO):
        def readline(self, size=-1):
            return b"x" * size

    with pytest.raises(RequestError, match=f"x is not a text file: line 1 has over {MAX_LINE_BYTES} bytes"):
        list(Source(Endless(), "x").lines())
    longest = b"x" * (MAX_LINE_BYTES - 1) + b"\n"
    assert len(list(Source(io.BytesIO(longest * 2), "x").lines())) == 2


def test_a_file_larger_than_it_may_be_is_refused():
    assert Source(io.BytesIO(b"abc"), "x").read(3) == b"abc"
    with pytest.raises(RequestError, match="x has over 2 bytes"):
        Source(io.BytesIO(b"abc"), "x").read(2)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    with (
        pytest.raises(RequestError, match=r"cannot read .*/none: No such file or directory"),
        opened(tmp_path / "none"),
    ):
        raise AssertionError


@small
@given(st.dictionaries(st.text("abc/", min_size=1).filter(lambda name: name.strip("/")), st.binary(max_size=2000)))
def test_members_are_those_of_the_archive(tmp_path_factory, files):
    files = {str(name).strip("/").replace("//", "/"): content for name, content in files.items()}
    archive = tmp_path_factory.mktemp("members") / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with contextlib.closing(members(archive)) as listed:
        found = [(path, source.read(1 << 20)) for path, source in listed]
    assert [content for _, content in found] == list(files.values())
    assert [path.name for path, _ in found] == [name.rpartition("/")[2] for name in files]


def test_an_archive_cut_at_any_byte_is_refused(tmp_path, write_tar):
    archive = write_tar(tmp_path / "a.tar.gz", {"a/one": b"1" * 700, "a/two": b""})
    content = archive.read_bytes()
    for size in range(len(content)):
        archive.write_bytes(content[:size])
        with pytest.raises(RequestError, match=r"^.*/a\.tar\.gz.* is damaged or cut short: "):
            read(archive)


def test_a_flipped_bit_is_refused_or_harmless(tmp_path, write_tar):
    archive = write_tar(tmp_path / "a.tar.gz", {"a/one": b"1" * 700, "a/two": b""})
    content, whole = archive.read_bytes(), read(archive)
    refused = 0
    for i in range(len(content)):
        archive.write_bytes(content[:i] + bytes([content[i] ^ 4]) + content[i + 1 :])
        try:
            assert read(archive) == whole  # the flipped bit was of the time in gzip's header, or so
        except RequestError as e:
            assert "\n" not in str(e)
            refused += 1
    assert refused > len(content) // 2


def test_names_in_an_archive_never_become_files(tmp_path, write_tar, monkeypatch):
    folder = tmp_path / "deep" / "er"
    archive = write_tar(folder / "a.tar.gz", {"../../up": b"1", f"{tmp_path}/absolute": b"2", "in": b"3"})
    monkeypatch.chdir(folder)
    assert sorted(read(archive).values()) == [b"1", b"2", b"3"]
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a.tar.gz", "deep", "er"]


def test_only_regular_files_are_members(tmp_path):
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"kind{kind.decode()}")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    assert read(archive) == {}


def test_the_name_of_a_member_cannot_fake_the_message(tmp_path, write_tar):
    archive = write_tar(tmp_path / "a.tar.gz", {"a\nb\x1b[31m": b"\xff"})
    with contextlib.closing(members(archive)) as listed:
        ((_, source),) = listed
    assert source.where == f"{archive}: 'a\\nb\\x1b[31m'"


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "a.tgz").write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(RequestError, match=r"a\.tgz is damaged or cut short: "):
        read(tmp_path / "a.tgz")
