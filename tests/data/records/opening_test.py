"""Real files open without a prefix; every format is found by its ending; nothing heavy is imported for a light one."""

import subprocess
import sys

import numpy as np
import pytest

from raylingvo.data.records import FORMATS, open_records, write_records
from raylingvo.data.tf_example import Feature, parse_examples

ENDINGS = {
    "text": "txt",
    "jsonl": "jsonl",
    "tfrecord": "tfrecord",
    "tfrecord_gzip": "tfrecord.gz",
    "parquet": "parquet",
    "arrow": "arrow",
    "array_record": "array_record",
    "npz": "npz",
}


def test_every_format_by_its_ending_by_its_prefix_and_remote(memory):
    assert {*ENDINGS, "iota"} == {*FORMATS}
    for format, ending in ENDINGS.items():
        for place in ("", "memory://d/"):
            path = f"{place}x.{ending}"
            write_records(path, [b"a", b"b", b"c"], format)
            by_ending, by_prefix = open_records(path), open_records(f"{format}:{path}")
            for records in (by_ending, by_prefix):
                last = records.read(np.array([2]))[0]
                assert len(records) == 3 and last in (b"c", {"record": b"c"}, {"record": "c"})
                assert records.where(2).startswith(str(open_records(path)._files[0].path))
                assert records.problems == [] and len(records.fingerprint) == 32
                records.close()


def test_the_wmt_shard(test_data):
    path = test_data / "wmt/translate_ende_wmt32k-train-00511-of-00512"
    records = open_records(str(path))
    assert len(records) == 8941
    assert records.where(17) == f"{path}: record 17 at byte 2390"
    spec = {"inputs": Feature("int64"), "targets": Feature("int64")}
    parsed = parse_examples(records.read(np.arange(8941)), spec)
    assert all(one["inputs"][-1] == one["targets"][-1] == 1 for one in parsed)  # <EOS>
    assert round(np.mean([len(one["inputs"]) for one in parsed])) == 31
    assert round(np.mean([len(one["targets"]) for one in parsed])) == 32
    both = [len(one["inputs"]) in range(4, 21) and len(one["targets"]) in range(4, 21) for one in parsed]
    assert sum(both) == 2083
    assert len(open_records(str(test_data / "wmt/translate_ende_wmt32k-train@512"))) == 8941


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("multi30k/train.en.gz", 29_000),
        ("multi30k/val.de.gz", 1014),
        ("multi30k/train.*.gz", 58_000),
        ("wmt/bleu_sm18.tsv", 3003),
        ("wmt/wmt14_ende_wpm_32k_test.tfrecord", 100),
        ("lm/lm1b_100.txt", 100),
        ("fsdd/fsdd.parquet", 2500),
    ],
)
def test_real_files_open_without_a_prefix(test_data, name, count):
    assert len(open_records(str(test_data / name))) == count


def test_real_rows(test_data):
    (row,) = open_records(str(test_data / "fsdd/fsdd.parquet")).read(np.array([1234]))
    assert row["pcm"].dtype == np.int16 and row["pcm"].ndim == 1 and len(row["pcm"]) > 1000
    assert type(row["digit"]) is int and type(row["speaker"]) is str
    lines = open_records(str(test_data / "multi30k/val.en.gz")).read(np.array([0]))
    assert lines == [b"A group of men are loading cotton onto a truck"]


def test_light_formats_import_nothing_heavy(root):
    (root / "x.txt").write_bytes(b"a\nb\n")
    code = (
        "import sys, numpy as np; from raylingvo.data.records import open_records\n"
        "assert open_records('x.txt').read(np.array([1])) == [b'b']\n"
        "heavy = ('pyarrow', 'fsspec', 'google', 'google_crc32c', 'array_record', 'tensorflow', 'jax', 'grain')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
