"""The speed of an input by itself: what is counted, of each column."""

import pytest

from raylingvo.data.bench import bench
from raylingvo.data.images import Digits
from raylingvo.data.records import write_records
from raylingvo.data.text import TextLines, TextPairs
from raylingvo.data.tokenizers import AsciiTokenizer


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pairs(**batching):
    """One token of the target for each of the source's 11, and their ends."""
    write_records("pairs.tsv", [b"abcdefghij\t"] * 32)
    tokenizer = AsciiTokenizer()
    return TextPairs(
        records="pairs.tsv", source="0", target="1", source_tokenizer=tokenizer, target_tokenizer=tokenizer, **batching
    )


def test_images_have_examples_only():
    result = bench(Digits(split="train"), 8, 0, 10)
    assert (result["batches"], result["examples"]) == (10, 80)
    assert result["examples_per_second"] == pytest.approx(80 / result["seconds"])
    assert result["open_seconds"] > 0
    assert not {"tokens", "rows"} & result.keys()


def test_tokens_are_counted_by_column():
    seen = []
    result = bench(pairs(bucket_bounds=(11,)), 8, 0, 10, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (10, 10)
    assert result["examples"] == 80
    assert result["tokens"] == {"src": 80 * 11, "tgt": 80}
    for column, number in result["tokens"].items():
        assert result["tokens_per_second"][column] == pytest.approx(number / result["seconds"])
    assert result["padding_waste"] == pytest.approx(1 - 12 / 22)


def test_a_column_without_a_name_is_called_ids():
    write_records("lines.txt", [b"abc"] * 16)
    result = bench(TextLines(records="lines.txt", tokenizer=AsciiTokenizer(), bucket_bounds=(4,)), 8, 0, 2)
    assert result["tokens"] == {"ids": 64}


def test_packed_batches_have_rows():
    result = bench(pairs(packed_lengths=(22, 2)), 4, 0, 5)
    assert result["rows"] == 20
    assert result["rows_per_second"] == pytest.approx(20 / result["seconds"])
    assert not {"examples", "examples_per_second"} & result.keys()
    assert result["tokens"] == {"src": 20 * 22, "tgt": 40}
