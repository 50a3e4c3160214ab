"""Batches that also have the texts their rows were made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from raylingvo.data.batches import Batches

# B rows of a batch, R of them real.


class WithTexts:
    """`batches`, and for each real row the texts of its record, as fields of strings: object[B], "" where padded.

    read: the numbers of records, i64[R] (the batches' field `id`) -> field name -> R texts.
    """

    def __init__(self, batches: Batches, read: Callable[[np.ndarray], Mapping[str, Sequence[str]]]):
        self._batches, self._read = batches, read
        self.num_examples = batches.num_examples
        self.identity: Mapping[str, Any] = batches.identity
        self.facts = batches.facts

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        return self._with_texts(self._batches[k])

    def samples(self) -> Iterator[dict[str, np.ndarray]]:
        return map(self._with_texts, self._batches.samples())

    def _with_texts(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        real_B = batch["weight"] > 0
        texts = {}
        for name, text_R in self._read(batch["id"][real_B]).items():
            texts[name] = np.full(len(real_B), "", object)
            texts[name][real_B] = text_R
        return batch | texts
