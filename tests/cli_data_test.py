"""`raylingvo data ..`: what goes to which stream, JSON for scripts, one line and status 2 for wrong requests."""

from __future__ import annotations

import datetime
import json

import pytest
from command_line import command_of

from raylingvo.data.records import write_records

PAIRS = [f"{'a ' * (i % 7 + 1)}\tb{i}".encode() for i in range(40)]


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_records("pairs.tsv", PAIRS)
    return tmp_path / "data"


@pytest.fixture
def command(monkeypatch, capsys):
    """command(*arguments) -> (exit status, stdout, stderr) of `raylingvo data ARGUMENTS`."""
    return command_of(monkeypatch, capsys, "data")


def as_json(result):
    status, out, _ = result
    assert status == 0
    assert out.count("\n") == 1
    return json.loads(out)


def test_count(command):
    assert command("count", "pairs.tsv") == (0, "40\n", "")
    assert as_json(command("count", "iota:7", "--json")) == {"pattern": "iota:7", "records": 7}


def test_head(command):
    status, out, _ = command("head", "pairs.tsv", "-n", 2)
    assert (status, [json.loads(line) for line in out.splitlines()]) == (0, ["a \tb0", "a a \tb1"])
    assert as_json(command("head", "pairs.tsv", "--json"))["records"][4] == "a a a a a \tb4"


def test_stats(command, tmp_path):
    status, out, err = command("stats", "pairs.tsv", "--field", 0, "--buckets", 2, "--out", tmp_path / "x.png")
    assert (status, err) == (0, "reading\n")
    assert out.startswith("40 records, 155 words\n")
    assert "bucket_bounds [" in out
    assert (tmp_path / "x.png").exists()
    found = as_json(command("stats", "pairs.tsv", "--field", 0, "--tokens", 14, "--buckets", 2, "--json"))
    assert found["buckets"]["upper_bounds"][-1] == 7
    assert found["buckets"]["batch_sizes"][-1] == 2


def test_vocab_then_stats_in_its_tokens(command):
    made = as_json(command("vocab", "pairs.tsv", "--type", "words", "--size", 20, "--out", "v.txt", "--json"))
    assert made["type"] == "words"
    assert made["vocabulary"].endswith("data/v.txt")
    found = as_json(command("stats", "pairs.tsv", "--tokenizer", "words:v.txt", "--json"))
    assert (found["unit"], found["lengths"]["min"]) == ("tokens", 3)  # a, b0 and the end


def test_one_vocabulary_of_two_files_then_stats_of_both(command, data):
    write_records("train.en", [b"the dog", b"the cat sleeps"] * 9, "text")
    write_records("train.de", [b"der Hund", b"die Katze"] * 9, "text")
    made = command("vocab", "train.en,train.de", "--type", "wpm", "--size", 60, "--out", "both.vocab")
    assert made[0] == 0
    pieces = (data / "both.vocab").read_text().split()
    assert {"\u2581the", "\u2581der"} <= set(pieces)
    settings = ("--tokenizer", "wpm:both.vocab", "--target", "train.de", "--json")
    found = as_json(command("stats", "train.en", *settings))
    assert (found["records"], found["target"], found["unit"]) == (18, "train.de", "tokens")
    characters = as_json(command("stats", "train.en", *settings, "--target-tokenizer", "ascii"))
    assert characters["lengths"]["max"] == len("die Katze") + 1
    assert command("stats", "train.en", "--target", "pairs.tsv")[0] == 2


def test_a_vocabulary_of_two_columns(command, data):
    fields = ("--field", 0, "--field", 1)
    assert command("vocab", "pairs.tsv", *fields, "--type", "words", "--size", 20, "--out", "v.txt")[0] == 0
    words = {line.split("\t")[0] for line in (data / "v.txt").read_text().splitlines()}
    assert {"a", "b0", "b1"} <= words


def test_vocab_says_where_it_went(command, data):
    made = command("vocab", "pairs.tsv", "--type", "words", "--size", 20, "--out", "new/v.txt")
    assert made == (0, f"{data}/new/v.txt\n", "training\n")


def test_convert_says_where_it_went(command, data):
    status, out, err = command("convert", "pairs.tsv", "pairs.jsonl")
    assert (status, out, err) == (0, f"{data}/pairs.jsonl: 40 records\n", "converting\n")
    made = as_json(command("convert", "pairs.tsv", "new/pairs.jsonl", "--json"))
    assert made == {"records": 40, "target": f"{data}/new/pairs.jsonl"}
    assert as_json(command("count", "new/pairs.jsonl", "--json"))["records"] == 40
    assert "RAYLINGVO_DATA" in command("convert", "--help")[1]


def test_head_of_values_that_json_lacks(command):
    write_records("odd.parquet", [{"time": datetime.datetime(2024, 2, 29), "score": float("nan")}])
    expected = {"time": "2024-02-29 00:00:00", "score": None}
    assert json.loads(command("head", "odd.parquet")[1]) == expected
    assert as_json(command("head", "odd.parquet", "--json"))["records"] == [expected]


def test_bench(command):
    found = as_json(command("bench", "image.digits.LeNet5", "--batches", 3, "--set", "train.batch_size=16", "--json"))
    assert (found["dataset"], found["examples"]) == ("train", 48)
    assert "examples/s" in command("bench", "image.digits.LeNet5", "--batches", 3)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("count", "nowhere.tsv"), "nowhere.tsv not found"),
        (("count", "nowhere*.tsv"), "nowhere*.tsv"),
        (("head", "pairs.tsv", "-n", "0"), "Invalid value for '--number'"),
        (("stats", "pairs.tsv", "--field", "9"), "no field '9'"),
        (("stats", "pairs.tsv", "--tokenizer", "wpm:no.vocab"), "no.vocab"),
        (("stats", "pairs.tsv", "--out", "no/x.png"), "--out no/x.png: cannot be written"),
        (("convert", "pairs.tsv", "pairs.what"), "the format of pairs.what must be one of"),
        (("vocab", "pairs.tsv", "--type", "spm", "--size", "9", "--out", "v"), "Invalid value for '--type'"),
        (("vocab", "pairs.tsv", "--type", "wpm", "--size", "5", "--out", "v"), "too small"),
        (("bench", "image.digits.LeNet"), "image.digits.LeNet5"),
        (("bench", "image.mnist.LeNet5"), "raylingvo data prepare mnist"),
        (("prepare", "mnits"), "mnist"),
    ],
)
def test_wrong_requests(command, arguments, message):
    status, out, err = command(*arguments)
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
