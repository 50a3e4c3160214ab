"""Reading TFRecords of tf.Examples, against tf.data; and finding where records start.

(a) Every example of a real shard, WMT English-German pairs as two ragged int64 features each: `open_records`, `read`
in batches, `parse_examples`; against `tf.data.TFRecordDataset(...).map(tf.io.parse_single_example)` with default
options, in alternating rounds of one process. Both see every example as Python gets it, from a file that is in the
page cache. Goal: 1.5 times its examples a second. Also against the fastest that tf.data does, which reads and parses
whole batches (`.batch(64).map(tf.io.parse_example)`) into one sparse tensor. Before, the two must agree on every value.

(b) The index of offsets of a TFRecord and of a text file of 200 MB each, built from nothing, in MB/s. Goal: 200. Also
the ratio to reading the file into memory.

RAYLINGVO_TEST_DATA names the folder of test data; TensorFlow comes with `pip install -e '.[tensorflow]'`. The file's
records are 142 bytes long, the text's lines 80.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _compare import median, report

from raylingvo.data.records import open_records, tfrecord, write_records
from raylingvo.data.tf_example import Feature, parse_examples

_SHARD = "wmt/translate_ende_wmt32k-train-00511-of-00512"
_BATCH = 64
_FEATURES = {"inputs": Feature("int64"), "targets": Feature("int64")}


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _ratio(ours: list[float], theirs: list[float]) -> float:
    """The median ratio of rounds."""
    return round(median([a / b for a, b in zip(ours, theirs, strict=True)]), 2)


def reading(shard: Path, rounds: int) -> dict[str, Any]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    features = {name: tf.io.VarLenFeature(tf.int64) for name in _FEATURES}
    lines = tf.data.TFRecordDataset(str(shard))
    single = lines.map(lambda record: tf.io.parse_single_example(record, features))
    batched = lines.batch(_BATCH).map(lambda record_B: tf.io.parse_example(record_B, features))
    records = open_records(str(shard))

    def ours() -> list[Any]:
        examples = []
        for at in range(0, len(records), _BATCH):
            examples += parse_examples(records.read(np.arange(at, min(at + _BATCH, len(records)))), _FEATURES)
        return examples

    for mine, theirs in zip(ours(), single, strict=True):
        for name in features:
            np.testing.assert_array_equal(mine[name], theirs[name].values.numpy(), strict=True)
    rates: dict[str, list[float]] = {"ours": [], "tf_data": [], "tf_data_batched": []}
    for i in range(rounds):
        print(f"round {i + 1}/{rounds}", file=sys.stderr)
        rates["ours"].append(len(records) / seconds(ours))
        rates["tf_data"].append(len(records) / seconds(lambda: list(single)))
        rates["tf_data_batched"].append(len(records) / seconds(lambda: list(batched)))
    return {
        "ratio": _ratio(rates["ours"], rates["tf_data"]),
        "ratio_to_batched": _ratio(rates["ours"], rates["tf_data_batched"]),
        "examples": len(records),
        "examples_per_second": {name: round(median(values)) for name, values in rates.items()},
        "examples_per_second_of_rounds": {name: [round(value) for value in values] for name, values in rates.items()},
    }


def indexing(folder: Path, megabytes: int, rounds: int) -> dict[str, Any]:
    """The files are in the page cache, the cache of indices is empty."""
    rng = np.random.default_rng(0)
    record_bytes, line_bytes = 142, 80
    n = megabytes * 1_000_000 // (record_bytes + tfrecord.FRAME_BYTES)
    write_records(folder / "x.tfrecord", (rng.bytes(record_bytes) for _ in range(n)))
    line = b"x" * (line_bytes - 1)
    write_records(folder / "x.txt", (line for _ in range(megabytes * 1_000_000 // line_bytes)))
    figures: dict[str, Any] = {}
    for format, name in (("tfrecord", "x.tfrecord"), ("text", "x.txt")):
        file = folder / name
        megabytes_of_file = file.stat().st_size / 1e6
        building, reading_file, opening = [], [], []
        for i in range(rounds):
            os.environ["XDG_CACHE_HOME"] = str(folder / f"{format}-{i}")
            building.append(megabytes_of_file / seconds(lambda file=file: open_records(str(file))))
            opening.append(seconds(lambda file=file: open_records(str(file))))
            reading_file.append(megabytes_of_file / seconds(file.read_bytes))
        figures[f"{format}_index"] = {
            "megabytes_per_second": round(median(building)),
            "ratio_to_reading": _ratio(building, reading_file),
            "megabytes_per_second_of_rounds": [round(value) for value in building],
            "megabytes": round(megabytes_of_file),
            "records": len(open_records(str(file))),
            "seconds_to_open_from_the_cache": round(median(opening), 4),
        }
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=200, help="size of each file to index")
    args = parser.parse_args()
    if "RAYLINGVO_TEST_DATA" not in os.environ:
        parser.error("RAYLINGVO_TEST_DATA must name the folder of test data")

    with tempfile.TemporaryDirectory(prefix="raylingvo-records-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        indices = indexing(Path(folder), args.megabytes, args.rounds)
        figures = reading(Path(os.environ["RAYLINGVO_TEST_DATA"]) / _SHARD, args.rounds)
    report("records", **figures, **indices, cpus=len(os.sched_getaffinity(0)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
