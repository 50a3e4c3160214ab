"""Vocabulary files: found, loaded once for each state, from any file system."""

import fsspec
import pytest

from raylingvo.data.tokenizers import WpmTokenizer, _files
from raylingvo.errors import RequestError


def parse(content, name, *args):
    return [content, name, args]


def test_a_file_is_parsed_once_for_each_state(root):
    (root / "v").write_bytes(b"one")
    first = _files.load("v", parse, True)
    assert first == [b"one", str(root / "v"), (True,)]
    assert _files.load("v", parse, True) is first
    assert _files.load("v", parse, False) is not first
    (root / "v").write_bytes(b"other")
    assert _files.load("v", parse, True)[0] == b"other"


def test_an_empty_file(root):
    (root / "v").touch()
    assert _files.load("v", parse)[0] == b""


def test_a_vocabulary_in_a_bucket():
    with fsspec.open("memory://vocabularies/v.txt", "wb") as file:
        file.write(b"<unk>\n<s>\n</s>\na\n")
    tokenizer = WpmTokenizer(vocab_filepath="memory://vocabularies/v.txt")
    tokenizer.check()
    assert tokenizer.encode(["a"], 3)[1].tolist() == [[0, 3, 2]]
    assert "memory://" in tokenizer.fingerprint()


def test_a_vocabulary_in_a_bucket_is_the_one_that_was_looked_up_last():
    tokenizer = WpmTokenizer(vocab_filepath="memory://vocabularies/changing.txt")
    for pieces, label in (("a", 3), ("b\na", 4)):
        with fsspec.open("memory://vocabularies/changing.txt", "wb") as file:
            file.write(f"<unk>\n<s>\n</s>\n{pieces}\n".encode())
        tokenizer.fingerprint()  # encoding alone makes no round trip
        assert tokenizer.encode(["a"], 3)[1].tolist() == [[0, label, 2]]


def test_a_name_means_another_file_under_another_root(root, monkeypatch):
    for folder in ("x", "y"):
        (root / folder).mkdir()
        (root / folder / "v").write_text(folder)
    for folder in ("x", "y", "x"):
        monkeypatch.setenv("RAYLINGVO_DATA", str(root / folder))
        assert _files.load("v", parse)[0] == folder.encode()


def test_a_folder_is_no_file(root):
    with pytest.raises(RequestError, match="is a folder"):
        _files.find_one(".")


def test_only_a_newline_ends_a_line():
    assert _files.lines(b"a\r\n\nb\x0bc\xe2\x80\xa8d\n\n") == [(1, b"a\r"), (3, b"b\x0bc\xe2\x80\xa8d")]
