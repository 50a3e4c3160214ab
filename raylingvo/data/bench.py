"""How fast the training input of an experiment is by itself, without a model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from raylingvo.data.dataset import Dataset
from raylingvo.data.pipeline import TrainInput


def bench(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    num_batches: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Reads batches as the Trainer does; a JSON value of what came, and how fast. progress: (batches done, all).

    {"batches", "examples", "seconds", "examples_per_second", "batches_per_second", "open_seconds": until the first
    batch, "facts"}, and for sequences "tokens", "tokens_per_second" (of the column with most) and "padding_waste" (the
    share of all positions).
    """
    start = time.perf_counter()
    with contextlib.closing(TrainInput(dataset.train_batches(batch_size, seed))) as train_input:
        next(train_input)
        opened = time.perf_counter()
        examples, positions, tokens = 0, 0, {}
        for k in range(num_batches):
            batch = next(train_input)
            examples += int(np.count_nonzero(batch["weight"]))
            for name, values in batch.items():
                if name.endswith("paddings"):
                    positions += values.size
                    tokens[name] = tokens.get(name, 0) + int((values == 0).sum())
            progress(k + 1, num_batches)
        seconds = time.perf_counter() - opened
        facts = dict(train_input.facts)
    result: dict[str, Any] = {
        "batches": num_batches,
        "examples": examples,
        "seconds": seconds,
        "open_seconds": opened - start,
        "batches_per_second": num_batches / seconds,
        "examples_per_second": examples / seconds,
        "facts": facts,
    }
    if tokens:
        most = max(tokens.values())
        result |= {
            "tokens": most,
            "tokens_per_second": most / seconds,
            "padding_waste": 1 - sum(tokens.values()) / positions,
        }
    return result
