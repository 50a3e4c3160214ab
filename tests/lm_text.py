"""Real English in the layout of `raylingvo data prepare lm1b`, and an n-gram model of it to compare with."""

from __future__ import annotations

import collections
import re
from pathlib import Path

import numpy as np

from raylingvo.data.records import open_records, write_records
from raylingvo.data.tf_example import Feature, parse_examples
from raylingvo.data.tokenizers import T2tSubwordTokenizer
from raylingvo.data.vocabulary import train_vocab

_HELD_OUT = 500


def prepare_text(test_data: Path, root: Path, vocab_size: int) -> None:
    """Writes lm1b/{train,dev,test}.parquet and lm1b/vocab-4k.txt under `root`, which must be RAYLINGVO_DATA.

    train: the 100 sentences of the benchmark and 7,941 English ones of WMT; dev and test: the last 1,000 of WMT.
    """
    wmt = _wmt_english(test_data)
    benchmark = (test_data / "lm" / "lm1b_100.txt").read_text().splitlines()
    splits = {
        "train": benchmark + wmt[: -2 * _HELD_OUT],
        "dev": wmt[-2 * _HELD_OUT : -_HELD_OUT],
        "test": wmt[-_HELD_OUT:],
    }
    for split, lines in splits.items():
        write_records(f"lm1b/{split}.parquet", [{"text": line} for line in lines])
    train_vocab("words", splits["train"], vocab_size, root / "lm1b" / "vocab-4k.txt")


def _wmt_english(test_data: Path) -> list[str]:
    """8,941 sentences, split into words and marks as the benchmark's are."""
    records = open_records(f"tfrecord:{test_data}/wmt/translate_ende_wmt32k-train-00511-of-00512")
    examples = parse_examples(records.read(np.arange(len(records))), {"inputs": Feature(dtype="int64")})
    rows = [np.asarray(example["inputs"]) for example in examples]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for to, row in zip(ids, rows, strict=True):
        to[: len(row)] = row
    tokenizer = T2tSubwordTokenizer(vocab_filepath=str(test_data / "vocab" / "mlperf.ende.subwords.vocab"))
    lines = tokenizer.decode(ids, np.array([len(row) - 1 for row in rows]))
    return [" ".join(re.findall(r"\w+|[^\w\s]", line)) for line in lines]


class AddKTrigram:
    """P(w | u, v) = (count(u v w) + k) / (count(u v) + k V), each sentence alone, with two <s> before it."""

    def __init__(self, sentences: list[list[int]], vocab_size: int, sos_id: int):
        self._vocab_size, self._sos_id = vocab_size, sos_id
        trigrams = [trigram for sentence in sentences for trigram in self._trigrams(sentence)]
        self._trigram_counts = collections.Counter(trigrams)
        self._bigram_counts = collections.Counter(trigram[:2] for trigram in trigrams)

    def log_pplx(self, sentences: list[list[int]], k: float) -> float:
        """The mean of -log P over tokens, the end of each sentence included."""
        trigrams = [trigram for sentence in sentences for trigram in self._trigrams(sentence)]
        count_T = np.array([self._trigram_counts[trigram] for trigram in trigrams])
        total_T = np.array([self._bigram_counts[trigram[:2]] for trigram in trigrams])
        return float(-np.log((count_T + k) / (total_T + k * self._vocab_size)).mean())

    def _trigrams(self, sentence: list[int]) -> list[tuple[int, int, int]]:
        padded = [self._sos_id, self._sos_id, *sentence]
        return list(zip(padded, padded[1:], sentence, strict=False))
