"""Tools that look into records: lengths, buckets, the picture, the first records, conversion, the speed of an input."""

import numpy as np
import pytest

from raylingvo.data import stats, stats_view
from raylingvo.data.bench import bench
from raylingvo.data.convert import convert
from raylingvo.data.images import Digits
from raylingvo.data.records import open_records, write_records
from raylingvo.data.text import TextLines
from raylingvo.data.tf_example import encode_example
from raylingvo.data.tokenizer_choice import tokenizer_from_text
from raylingvo.data.tokenizers import AsciiTokenizer
from raylingvo.errors import RequestError


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/empty.txt").write_bytes(b"")
    write_records("words.txt", [b" ".join([b"w"] * n) for n in range(1, 41)])
    return tmp_path / "data"


def test_lengths_in_words_and_the_buckets_that_suit_them():
    result = stats.stats("words.txt", tokens_per_batch=100, num_buckets=4)
    assert (result["records"], result["unit"]) == (40, "words")
    expected = {"min": 1, "mean": 20.5, "max": 40, "total": 820, "p50": 20, "p90": 36, "p95": 38, "p99": 40}
    assert result["lengths"] == expected
    assert sum(number for _, number in result["histogram"]) == 40
    bounds = result["buckets"]["upper_bounds"]
    assert len(bounds) == 4
    assert bounds[-1] == 40
    assert result["buckets"]["batch_sizes"] == [100 // bound for bound in bounds]
    padded = sum(min(b for b in bounds if n <= b) for n in range(1, 41))
    assert result["buckets"]["padding_waste"] == pytest.approx(1 - 820 / padded)


def test_lengths_in_tokens_of_the_longest_field():
    write_records("pairs.tsv", [b"abc\ta", b"a\tabcdef", b"\t"])
    result = stats.stats("pairs.tsv", fields=["0", "1"], tokenizer=AsciiTokenizer())
    assert result["unit"] == "tokens"
    assert (result["lengths"]["min"], result["lengths"]["max"], result["lengths"]["total"]) == (1, 7, 12)


def test_lengths_of_ids_in_examples():
    write_records("ids.tfrecord", [encode_example({"inputs": list(range(n)), "id": 5}) for n in (1, 9, 4)])
    result = stats.stats("ids.tfrecord", fields=["inputs"])
    assert (result["unit"], result["lengths"]["max"], result["lengths"]["total"]) == ("ids", 9, 14)
    assert stats.head("ids.tfrecord", 1) == [{"id": [5], "inputs": [0]}]


def test_bytes_that_are_nothing_else_are_counted():
    write_records("raw.tfrecord", [b"\xff" * 5, b"\xfe" * 50])
    result = stats.stats("raw.tfrecord")
    assert (result["unit"], result["lengths"]["total"]) == ("bytes", 55)
    assert stats.head("raw.tfrecord", 1) == [{"bytes": 5, "hex": "ffffffffff"}]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.stats("words.txt", fields=["3"]), r"words\.txt: record 0.* has no field '3'; it has 0"),
        (lambda: stats.stats("empty.txt"), "there are no records"),
        (lambda: stats.stats("nowhere.txt"), r"nowhere\.txt"),
        (lambda: list(stats.texts("words.txt", ["1"])), "no field '1'"),
        (lambda: tokenizer_from_text("spm:x"), r"--tokenizer must be sentencepiece:FILE, .* \(got 'spm:x'\)"),
        (lambda: tokenizer_from_text("wpm:nowhere.vocab"), r"nowhere\.vocab"),
    ],
)
def test_wrong_requests_are_named(call, message):
    with pytest.raises(RequestError, match=message):
        call()


def test_progress_reaches_the_end():
    seen = []
    stats.stats("words.txt", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (40, 40)


def test_the_picture_is_a_png(tmp_path):
    result = stats.stats("words.txt")
    out = stats.plot(result, tmp_path / "lengths.png")
    assert out.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RequestError, match="cannot be written"):
        stats.plot(result, tmp_path / "no" / "lengths.png")


def test_the_table_has_a_bar_for_each_range(capsys):
    stats_view.print_stats(stats.stats("words.txt"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "40 records, 820 words"
    assert sum(line.endswith("#") for line in lines) == len(stats.stats("words.txt")["histogram"])


@pytest.mark.parametrize("target", ["a.jsonl", "a.parquet", "a.tfrecord", "a.tfrecord.gz", "a.arrow", "a.array_record"])
def test_text_survives_any_format_and_back(target):
    assert convert("words.txt", target) == 40
    assert convert(target, "back.txt") == 40
    assert open_records("back.txt").read(np.arange(40)) == open_records("words.txt").read(np.arange(40))


def test_examples_become_columns():
    write_records("ids.tfrecord", [encode_example({"inputs": [n, n], "name": "x"}) for n in range(5)])
    convert("ids.tfrecord", "ids.parquet")
    record = open_records("ids.parquet").read(np.array([3]))[0]
    np.testing.assert_array_equal(record["inputs"], [3, 3])


def test_bench_counts_what_it_reads(capsys):
    result = bench(Digits(split="train"), 8, 0, 10)
    assert (result["batches"], result["examples"]) == (10, 80)
    assert "tokens" not in result
    lines = TextLines(records="words.txt", tokenizer=AsciiTokenizer(), bucket_bounds=(40, 80))
    seen = []
    result = bench(lines, 8, 0, 10, progress=lambda done, total: seen.append(done))
    assert seen[-1] == 10
    assert 0 < result["padding_waste"] < 1
    assert result["tokens_per_second"] == pytest.approx(result["tokens"] / result["seconds"])
    stats_view.print_bench({"experiment": "a.b", "dataset": "train", **result})
    assert "num_too_long 0" in capsys.readouterr().out
