"""Tools that look into records: lengths and their units, buckets, the picture, texts, the first records."""

import datetime
import json

import numpy as np
import pytest

from raylingvo.data import stats
from raylingvo.data.records import write_records
from raylingvo.data.tf_example import encode_example
from raylingvo.data.tokenizers import AsciiTokenizer, VocabFileTokenizer
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


@pytest.fixture
def parallel():
    write_records("train.en", [b"a b c", b"d", b"e f"], "text")
    write_records("train.de", [b"x", b"y z z z", b"w"], "text")
    return "train.en", "train.de"


def test_of_two_files_the_longer_line_counts(parallel):
    source, target = parallel
    result = stats.stats(source, target=target, tokens_per_batch=8, num_buckets=2)
    assert (result["pattern"], result["target"], result["unit"]) == (source, target, "words")
    assert (result["lengths"]["min"], result["lengths"]["max"], result["lengths"]["total"]) == (2, 4, 9)
    assert result["buckets"]["upper_bounds"][-1] == 4
    write_records("pairs.tsv", [b"a b c\tx", b"d\ty z z z", b"e f\tw"])
    together = stats.stats("pairs.tsv", fields=["0", "1"], tokens_per_batch=8, num_buckets=2)
    assert {**together, "pattern": source, "target": target} == result
    # The same file may be both, with a field of each.
    again = stats.stats("pairs.tsv", target="pairs.tsv", fields=["0", "1"], tokens_per_batch=8, num_buckets=2)
    assert again["lengths"] == result["lengths"]


def test_each_side_by_its_own_vocabulary(parallel, data):
    (data / "v").write_text("<unk>\n<s>\n</s>\na b c\nd\n")
    words = VocabFileTokenizer(token_vocab_filepath="v", load_token_ids_from_vocab=False, append_eos=False)
    result = stats.stats(parallel[0], target=parallel[1], tokenizer=words, target_tokenizer=AsciiTokenizer())
    assert (result["unit"], result["lengths"]["max"]) == ("tokens", len("y z z z") + 1)
    assert result["lengths"]["min"] == 2  # "w" and its end; "e f" is of two words


def test_two_files_that_do_not_fit_are_refused(parallel, data):
    write_records("short.de", [b"x"], "text")
    write_records("ids.tfrecord", [encode_example({"ids": [1]})] * 3)
    for call, message in (
        (lambda: stats.stats("train.en", target="short.de"), "do not belong together: there are 3 and 1 records"),
        (lambda: stats.stats("train.en", target="ids.tfrecord"), "no unit in common: words and ids"),
        (lambda: stats.stats("train.en", target="train.de", fields=["0", "0", "0"]), "two fields, one of each"),
        (lambda: stats.stats("train.en", target_tokenizer=AsciiTokenizer()), "a tokenizer of targets needs targets"),
        (lambda: stats.stats("train.en", target="train.de", fields=["0", "1"]), r"train\.de: record 0.* no field '1'"),
    ):
        with pytest.raises(RequestError, match=message):
            call()


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


@pytest.fixture
def mixed():
    """Records with text, ids and bytes, of which some are null."""
    rows = [{"text": "a b c", "ids": np.arange(9), "raw": b"\xff" * n, "id": n} for n in range(1, 5)]
    rows[0]["text"] = rows[1]["ids"] = rows[2]["raw"] = None
    write_records("mixed.parquet", rows)
    return "mixed.parquet"


@pytest.mark.parametrize(
    ("fields", "unit", "lengths"),
    [
        ([], "words", [0, 3, 3, 3]),
        (["text"], "words", [0, 3, 3, 3]),
        (["ids"], "ids", [9, 0, 9, 9]),
        (["raw"], "bytes", [1, 2, 0, 4]),
    ],
)
def test_nulls_are_empty_and_shift_nothing(mixed, fields, unit, lengths):
    result = stats.stats(mixed, fields=fields)
    assert result["unit"] == unit
    assert (result["lengths"]["min"], result["lengths"]["total"]) == (min(lengths), sum(lengths))


def test_a_null_takes_no_value_of_another_column():
    write_records("a.jsonl", [{"text": "a b", "ids": [1]}, {"text": None, "ids": [1, 2, 3]}])
    assert stats.stats("a.jsonl")["lengths"]["total"] == 2
    assert list(stats.texts("a.jsonl", ["text"])) == ["a b"]


@pytest.mark.parametrize("fields", [["text", "ids"], ["raw", "ids"]])
def test_units_do_not_mix(mixed, fields):
    message = rf"mixed\.parquet: row 0.*no unit in common: '{fields[0]}' in .*, 'ids' in ids; name others with --field"
    with pytest.raises(RequestError, match=message):
        stats.stats(mixed, fields=fields)


def test_a_field_without_a_length_is_named(mixed):
    with pytest.raises(RequestError, match=r"row 0.*: field 'id' has no length in words"):
        stats.stats(mixed, fields=["text", "id"])
    with pytest.raises(RequestError, match=r"row 0.*: only text can be measured with a tokenizer"):
        stats.stats(mixed, fields=["ids"], tokenizer=AsciiTokenizer())


@pytest.mark.parametrize("tokenizer", [None, AsciiTokenizer()])
@pytest.mark.parametrize("number", [2, 4096, 5000])  # in the first chunk and after it
def test_a_record_of_another_unit_is_named(number, tokenizer):
    write_records("late.tfrecord", [*[b"text"] * number, b"\xff", b"text"])
    with pytest.raises(RequestError, match=rf"late\.tfrecord: record {number}\b.*: it has no length in words"):
        stats.stats("late.tfrecord", tokenizer=tokenizer)


def test_a_record_of_other_fields_is_named():
    write_records("late.tfrecord", [encode_example({"ids": [1, 2]}), b"\n\xff"])
    with pytest.raises(RequestError, match=r"late\.tfrecord: record 1.* has none of the fields of .*, 'ids'"):
        stats.stats("late.tfrecord")


def test_texts_are_those_of_the_record(mixed):
    rows = [
        {"text": "a b", "ids": [1, 2], "id": 5},
        {"text": None, "ids": [1], "id": 6},
        {"text": "c", "ids": [], "id": 7},
    ]
    write_records("a.jsonl", rows)
    write_records("a.tfrecord", [encode_example(rows[i]) for i in (0, 2)])
    assert list(stats.texts("a.jsonl")) == list(stats.texts("a.tfrecord")) == ["a b", "c"]
    with pytest.raises(RequestError, match=r"a\.jsonl: .*holds no text; name a field that does with --field"):
        list(stats.texts("a.jsonl", ["ids"]))
    with pytest.raises(RequestError, match=r"mixed\.parquet: row 0.*holds no text"):
        list(stats.texts(mixed))


def test_head_is_json_whatever_a_record_holds():
    day = datetime.datetime(2024, 2, 29, 12, 30)
    row = {
        "time": day,
        "times": [day.date(), None],
        "nan": float("nan"),
        "numbers": np.array([1.5, np.inf, -np.inf]),
        "nested": {"x": float("nan"), "raw": b"\xff\x00"},
        "flag": True,
        "duration": datetime.timedelta(seconds=90),
    }
    write_records("odd.parquet", [row])
    (shown,) = stats.head("odd.parquet", 1)
    assert json.loads(json.dumps(shown, allow_nan=False)) == {
        "time": "2024-02-29 12:30:00",
        "times": ["2024-02-29", None],
        "nan": None,
        "numbers": [1.5, None, None],
        "nested": {"x": None, "raw": {"bytes": 2, "hex": "ff00"}},
        "flag": True,
        "duration": "0:01:30",
    }


def test_head_of_half_a_character(data):
    (data / "half.jsonl").write_text('{"text": "a\\ud800"}\n')
    assert stats.head("half.jsonl", 1) == [{"text": "a\\ud800"}]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.stats("words.txt", fields=["3"]), r"words\.txt: record 0.* no field '3'; it has 1 tab-"),
        (lambda: stats.stats("empty.txt"), "there are no records"),
        (lambda: stats.stats("nowhere.txt"), r"nowhere\.txt"),
        (lambda: list(stats.texts("words.txt", ["1"])), "no field '1'"),
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
