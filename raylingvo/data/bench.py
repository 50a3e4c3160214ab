"""How fast the training input of an experiment is by itself, without a model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from raylingvo.data.dataset import Dataset
from raylingvo.data.pipeline import TrainInput

_PADDINGS = "paddings"


def bench(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    num_batches: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Reads batches as the Trainer does; a JSON value of what came, and how fast. progress: (batches done, all).

    {"batches", "examples", "seconds", "examples_per_second", "batches_per_second", "open_seconds": until the first
    batch, "facts"}. Of packed batches "rows" and "rows_per_second" stand in place of the examples: a row holds several.
    Sequences have also "tokens" and "tokens_per_second", each {column: number} (such as "src" and "tgt"; "ids" is the
    column without a name), and "padding_waste", the share of all positions.
    """
    start = time.perf_counter()
    with contextlib.closing(TrainInput(dataset.train_batches(batch_size, seed))) as train_input:
        first = next(train_input)
        opened = time.perf_counter()
        counted, positions, tokens = 0, 0, {}
        for k in range(num_batches):
            batch = next(train_input)
            counted += int(np.count_nonzero(batch["weight"]))
            for name, values in batch.items():
                if name.endswith(_PADDINGS):
                    column = name.removesuffix(_PADDINGS).removesuffix("_") or "ids"
                    positions += values.size
                    tokens[column] = tokens.get(column, 0) + int((values == 0).sum())
            progress(k + 1, num_batches)
        seconds = time.perf_counter() - opened
        facts = dict(train_input.facts)
    unit = "rows" if any(name.endswith("segment_ids") for name in first) else "examples"
    result: dict[str, Any] = {
        "batches": num_batches,
        unit: counted,
        "seconds": seconds,
        "open_seconds": opened - start,
        "batches_per_second": num_batches / seconds,
        f"{unit}_per_second": counted / seconds,
        "facts": facts,
    }
    if tokens:
        result |= {
            "tokens": tokens,
            "tokens_per_second": {column: number / seconds for column, number in tokens.items()},
            "padding_waste": 1 - sum(tokens.values()) / positions,
        }
    return result
