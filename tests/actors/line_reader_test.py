"""Lines are taken as they come, bit by bit or all at once, and are those of the whole text."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from raylingvo.actors.line_reader import LineReader, open_lines
from raylingvo.errors import RequestError

pytestmark = pytest.mark.timeout(30)  # who waits for the end of the input would wait for ever


@pytest.fixture
def pipe() -> Iterator[tuple[LineReader, int]]:
    """A reader, and where to write what it reads; the test may close it."""
    read_end, write_end = os.pipe()
    yield LineReader(read_end, "-"), write_end
    os.close(read_end)
    with contextlib.suppress(OSError):  # the test has
        os.close(write_end)


def test_a_line_is_there_before_the_next_is_written(pipe: tuple[LineReader, int]) -> None:
    reader, write_end = pipe
    for line in ("one", "zwei drei", ""):
        os.write(write_end, f"{line}\n".encode())
        assert reader.take(10) == [line]


def test_what_has_come_is_taken_up_to_the_limit(pipe: tuple[LineReader, int]) -> None:
    reader, write_end = pipe
    os.write(write_end, b"1\n2\r\n3\n4\nbeg")
    assert reader.take(3) == ["1", "2", "3"]
    assert reader.take(3) == ["4"]  # not the begun one
    os.write(write_end, b"un\n")
    assert reader.take(3) == ["begun"]
    os.write(write_end, b"no end")
    os.close(write_end)
    assert reader.take(3) == ["no end"]
    assert reader.take(3) == reader.take(3) == []


def test_it_waits_for_a_whole_line(pipe: tuple[LineReader, int]) -> None:
    reader, write_end = pipe
    os.write(write_end, b"be")
    taken: list[list[str]] = []
    waiting = threading.Thread(target=lambda: taken.append(reader.take(3)))
    waiting.start()
    os.write(write_end, b"gun\n")
    waiting.join()
    assert taken == [["begun"]]


@pytest.mark.parametrize("seed", range(10))
def test_they_are_the_lines_of_the_text(pipe: tuple[LineReader, int], seed: int) -> None:
    reader, write_end = pipe
    choice = random.Random(seed)
    text = "".join(choice.choice(["\n", "\r\n", "\r", "a", "é", "\U0001f600", "\u2028"]) for _ in range(200))
    pieces, rest = [], text.encode()
    while rest:
        cut = choice.randrange(1, 9)
        pieces.append(rest[:cut])
        rest = rest[cut:]
    taken: list[str] = []
    for piece in pieces:
        os.write(write_end, piece)
        if b"\n" in piece:
            taken += reader.take(choice.randrange(1, 4))
    os.close(write_end)
    while lines := reader.take(3):
        taken += lines
    assert taken == [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"\xef\xbb\xbfone\r\n\xef\xbb\xbftwo", ["one", "\ufefftwo"]),
        (b"", []),
        (b"\n", [""]),
        (b"a", ["a"]),
        (b"a\n\n", ["a", ""]),
        (b"a\r\n", ["a"]),
        (b"x" * 200_000, ["x" * 200_000]),
    ],
    ids=["mark", "nothing", "empty line", "no end", "empty last", "CRLF", "long"],
)
def test_files(tmp_path: Path, content: bytes, lines: list[str]) -> None:
    file = tmp_path / "input.txt"
    file.write_bytes(content)
    with open_lines(str(file)) as reader:
        assert reader.take(10) == lines
        assert reader.take(10) == []


def test_a_large_file_is_not_held_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "input.txt"
    file.write_text("some words of a line\n" * 100_000)
    taken = 0
    with open_lines(str(file)) as reader:
        while lines := reader.take(100):
            taken += len(lines)
            assert len(reader._whole) < 10_000
    assert taken == 100_000


def test_what_is_not_utf8_is_named_after_the_lines_before_it(pipe: tuple[LineReader, int]) -> None:
    reader, write_end = pipe
    os.write(write_end, b"1\n2\n3 \xff\n4\n")
    assert reader.take(1) == ["1"]
    assert reader.take(9) == ["2"]
    with pytest.raises(RequestError, match=r"^--input -: line 3 is not UTF-8 \(.*0xff in position 2"):
        reader.take(9)


@pytest.mark.parametrize(("name", "reason"), [("none.txt", "No such file or directory"), (".", "Is a directory")])
def test_what_cannot_be_opened(name: str, reason: str) -> None:
    with pytest.raises(RequestError, match=rf"^--input {name}: cannot be read \({reason}\)$"), open_lines(name):
        pass


def test_what_cannot_be_read(tmp_path: Path) -> None:
    file = os.open(tmp_path / "input.txt", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(RequestError, match=r"^--input input.txt: cannot be read \(Bad file descriptor\)$"):
        LineReader(file, "input.txt").take(1)
    os.close(file)
