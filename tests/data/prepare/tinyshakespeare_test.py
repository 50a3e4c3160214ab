"""Tiny Shakespeare: the split, and what is refused."""

import pytest

from raylingvo.data.prepare import prepare


def test_the_last_tenth_is_held_out(root, tmp_path):
    text = tmp_path / "input.txt"
    text.write_text("First Citizen:\nÀ nous!\r\n" * 10, newline="")
    assert prepare("tinyshakespeare", text) == [
        f"{root}/tinyshakespeare/train.txt: 216 characters",
        f"{root}/tinyshakespeare/dev.txt: 24 characters",
    ]
    parts = [(root / "tinyshakespeare" / f"{split}.txt").read_bytes() for split in ("train", "dev")]
    assert b"".join(parts) == text.read_bytes()


def test_what_cannot_be_read_is_refused(root, tmp_path, refusal):
    file = tmp_path / "input.txt"
    file.write_bytes(b"a\xff")
    assert refusal("tinyshakespeare", file).startswith(f"--from {file} is not UTF-8: ")
    file.write_bytes(b"a")
    assert refusal("tinyshakespeare", file) == f"--from {file} has 1 characters: too few to split"
    assert refusal("tinyshakespeare", tmp_path) == f"cannot read --from {tmp_path}: Is a directory"
    assert not root.exists()


@pytest.mark.data
def test_the_published_text(root, test_data):
    lines = prepare("tinyshakespeare", test_data / "lm" / "tinyshakespeare.txt")
    assert [line.rpartition(": ")[2] for line in lines] == ["1003854 characters", "111540 characters"]
