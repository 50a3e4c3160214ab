"""Notes are counted by how they begin, and none is left out of the sum."""

import pytest

from raylingvo.actors.notes import Notes


def summary(*notes: str | None, num_lines: int = 200) -> str:
    counted = Notes()
    for note in notes:
        counted.add({"text": "x"} if note is None else {"note": note})
    return counted.summary(num_lines)


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ([], ""),
        ([None, ""], ""),
        (["empty line"], "1 of 200 lines has a note: 1 empty line"),
        (
            ["cut to 100 of 140 tokens", "empty line", None, "empty line"],
            "3 of 200 lines have a note: 2 empty line, 1 cut to 100 of 140 tokens",
        ),
        (
            ["cut to 100 of 140 tokens", "cut to 100 of 141 tokens", "cut to 100 of 14 words", "empty"],
            "4 of 200 lines have a note: 3 cut to 100 of ..., 1 empty",
        ),
        (["no word 'a'", "no word 'b' here"], "2 of 200 lines have a note: 2 no word ..."),
        (["12 left out", "13 left out", "12 left out"], "3 of 200 lines have a note: 3 ..."),
    ],
)
def test_summaries(notes: list[str | None], expected: str) -> None:
    assert summary(*notes) == expected
