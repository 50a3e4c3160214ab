"""Multi30k from text to padded and packed batches: target tokens a second, padding, fill, and the cost of a restore.

Needs RAYLINGVO_TEST_DATA (multi30k/train.{en,de}.gz). A joint SentencePiece vocabulary of 8,000 pieces is trained
first; that time does not count. `cold`: with an empty cache, from opening the files to the end of one epoch, so with
the tokenization of all of it, and the start of the reading thread; `warm`: one epoch from the cache, read as the
Trainer reads it. Goals: cold and warm >= 300,000 target tokens/s, padding <= 0.12 with the suggested buckets, fill >=
0.97 packed to 256 tokens.
`restore_seconds`: setting the position and getting the next batch, at step 10 and at step 100,000, each in a new input;
goal: < 1 s, and the same for both. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gzip
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _compare import median, report

from raylingvo.data.bench import bench
from raylingvo.data.buckets import suggest
from raylingvo.data.pipeline import TrainInput
from raylingvo.data.text import TextPairs
from raylingvo.data.tokenizers import SentencePieceTokenizer
from raylingvo.data.vocabulary import train_vocab

TOKENS_PER_BATCH = 4096
PACKED = 256
PACKED_ROWS = 16


def restore_seconds(dataset: TextPairs, step: int) -> float:
    with contextlib.closing(TrainInput(dataset.train_batches(PACKED_ROWS, 0))) as train_input:
        state = train_input.state()
    state["position"] = {"next_index": step}
    with contextlib.closing(TrainInput(dataset.train_batches(PACKED_ROWS, 0))) as train_input:
        start = time.perf_counter()
        train_input.restore(state)
        next(train_input)
        return time.perf_counter() - start


def epoch(dataset: TextPairs) -> dict[str, Any]:
    """One epoch: as many batches as it takes to see every example about once."""
    tokens = dataset.open().length_NxC.sum(axis=0)
    batches = dataset.train_batches(PACKED_ROWS, 0)
    per_batch = sum((batches[k]["tgt_paddings"] == 0).sum() for k in range(20)) / 20
    return bench(dataset, PACKED_ROWS, 0, int(tokens[1] / per_batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if not (data := os.environ.get("RAYLINGVO_TEST_DATA")):
        sys.exit("RAYLINGVO_TEST_DATA is not set")
    files = [Path(data) / "multi30k" / f"train.{language}.gz" for language in ("en", "de")]
    with tempfile.TemporaryDirectory() as folder:
        lines = [line for file in files for line in gzip.decompress(file.read_bytes()).decode().splitlines()]
        model = train_vocab("sentencepiece", lines, 8000, Path(folder) / "multi30k.model")
        tokenizer = SentencePieceTokenizer(spm_model=str(model))
        plain = TextPairs(
            records=str(files[0]),
            target_records=str(files[1]),
            source="",
            target="",
            source_tokenizer=tokenizer,
            target_tokenizer=tokenizer,
            bucket_bounds=(256,),
        )
        cold, warm = [], []
        for i in range(arguments.rounds):
            print(f"round {i + 1}/{arguments.rounds}", file=sys.stderr)
            os.environ["XDG_CACHE_HOME"] = f"{folder}/cache{i}"
            start = time.perf_counter()
            source = plain.open()
            opened = time.perf_counter() - start
            buckets = suggest(source.length_NxC.max(axis=1), TOKENS_PER_BATCH, 12)
            bucketed = dataclasses.replace(
                plain, bucket_bounds=buckets.upper_bounds, bucket_batch_sizes=buckets.batch_sizes
            )
            read = epoch(bucketed)
            warm.append(read["tokens_per_second"]["tgt"])
            cold.append(read["tokens"]["tgt"] / (opened + read["open_seconds"] + read["seconds"]))
        packed = dataclasses.replace(plain, bucket_bounds=(), packed_lengths=(PACKED, PACKED))
        rows = epoch(packed)
        report(
            "input_pipeline",
            cold_target_tokens_per_second=median(cold),
            warm_target_tokens_per_second=median(warm),
            padding_waste=read["padding_waste"],
            packing_fill=rows["facts"]["packing_fill"],
            packed_target_tokens_per_second=rows["tokens_per_second"]["tgt"],
            restore_seconds={
                name: {step: median([restore_seconds(dataset, step) for _ in range(5)]) for step in (10, 100_000)}
                for name, dataset in (("bucketed", bucketed), ("packed", packed))
            },
            goals={"target_tokens_per_second": 300_000, "padding_waste": 0.12, "packing_fill": 0.97, "restore": 1.0},
        )


if __name__ == "__main__":
    main()
