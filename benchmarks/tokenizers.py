"""Word pieces against a greedy merge in plain Python, and SentencePiece against the library alone.

    python benchmarks/tokenizers.py [--rounds 7] [--size 4000]

The text is Multi30k's 29,000 English training sentences, from RAYLINGVO_TEST_DATA; both vocabularies are made from it.
Everything runs in this process, in turns, so that what else the machine does hits all. Prints one JSON line:

wpm_ratio: words per second of `WpmTokenizer.encode_ragged`, which starts each round with an empty word cache, over
those of the plain merge; wpm_warm_ratio: once it has seen the words.
sentencepiece_ratio: seconds of the library's batch encode to arrays, over those of `encode_ragged`, which gives the
same arrays; sentencepiece_lists_ratio: of its encode to lists of Python numbers, which no model can use, over those of
`encode_flat`, which gives one array and the lengths.
Ratios are medians over rounds. Exit status 1 if ids differ.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import itertools
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _compare import report
from sentencepiece import SentencePieceProcessor

from raylingvo.data.tokenizers import SentencePieceTokenizer, WpmTokenizer
from raylingvo.data.vocabulary import train_vocab

_EOS = 2


class PlainMerge:
    """What one writes first."""

    def __init__(self, vocab: Path):
        self._ids = {piece: i for i, piece in enumerate(vocab.read_text().splitlines())}

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        return [[i for word in line.split() for i in self._word(word)] + [_EOS] for line in lines]

    def _word(self, word: str) -> list[int]:
        pieces = ["\u2581", *word]
        while True:
            merges = [self._ids.get(a + b) for a, b in itertools.pairwise(pieces)]
            possible = [i for i in merges if i is not None]
            if not possible:
                return [self._ids[piece] for piece in pieces]
            at = merges.index(min(possible))
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=4000, help="of the vocabularies")
    args = parser.parse_args()
    data = Path(os.environ["RAYLINGVO_TEST_DATA"]) / "multi30k"
    lines = gzip.decompress((data / "train.en.gz").read_bytes()).decode().splitlines()
    with tempfile.TemporaryDirectory() as name:
        return _compare(lines, Path(name), args.size, args.rounds)


def _compare(lines: list[str], folder: Path, size: int, rounds: int) -> int:
    train_wpm, wpm = _timed(lambda: train_vocab("wpm", lines, size, folder / "wpm.vocab"))
    train_spm, spm = _timed(lambda: train_vocab("sentencepiece", lines, size, folder / "spm.model"))
    plain = PlainMerge(wpm)
    library = SentencePieceProcessor(model_file=str(spm))
    pieces = SentencePieceTokenizer(spm_model=str(spm))
    contenders: dict[str, Callable[[WpmTokenizer], Any]] = {
        "plain": lambda unused: plain.encode(lines),
        "wpm": lambda tokenizer: tokenizer.encode_ragged(lines),
        "wpm_warm": lambda tokenizer: tokenizer.encode_ragged(lines),
        "library": lambda unused: library.encode(lines, add_eos=True, out_type=int),
        "flat": lambda unused: pieces.encode_flat(lines),
        "library_arrays": lambda unused: library.encode(lines, add_eos=True, return_type="numpy"),
        "ragged": lambda unused: pieces.encode_ragged(lines),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    same = True
    for i in range(rounds):
        print(f"round {i + 1}/{rounds}", file=sys.stderr)
        # A new file has no words cached.
        tokenizer = WpmTokenizer(vocab_filepath=str(shutil.copy(wpm, folder / f"wpm.{i}.vocab")))
        tokenizer.encode_ragged([])  # loads it
        results = {}
        for name, contender in contenders.items():
            spent, results[name] = _timed(functools.partial(contender, tokenizer))
            seconds[name].append(spent)
        same = same and _same(results["plain"], results["wpm"]) and _same(results["library"], results["ragged"])
        same = same and np.array_equal(results["flat"][0], np.concatenate(results["library_arrays"]))

    def ratio(baseline: str, ours: str) -> float:
        return round(statistics.median(b / a for a, b in zip(seconds[ours], seconds[baseline], strict=True)), 3)

    words = sum(len(line.split()) for line in lines)
    report(
        "tokenizers",
        wpm_ratio=ratio("plain", "wpm"),
        wpm_warm_ratio=ratio("plain", "wpm_warm"),
        sentencepiece_ratio=ratio("library_arrays", "ragged"),
        sentencepiece_lists_ratio=ratio("library", "flat"),
        words_per_second={name: round(words / statistics.median(spent)) for name, spent in seconds.items()},
        train_seconds={"wpm": round(train_wpm, 2), "sentencepiece": round(train_spm, 2)},
        sentences=len(lines),
        words=words,
        vocab_size=size,
        rounds=rounds,
        same_ids=same,
        cpus=len(os.sched_getaffinity(0)),
    )
    return 0 if same else 1


def _same(rows: Sequence[Sequence[int]], arrays: Sequence[np.ndarray]) -> bool:
    return all(row == array.tolist() for row, array in zip(rows, arrays, strict=True))


if __name__ == "__main__":
    sys.exit(main())
