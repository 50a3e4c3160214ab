"""A dataset whose batches say for which task of several they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from raylingvo.data.batches import WHOLE, Batches, Shard
from raylingvo.data.dataset import Dataset

# Fields that the roles read stay without a name before them.
_COMMON = ("weight", "id", "source_id")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfTask(Dataset):
    """The batches of `dataset`, with `task/` before the names of their fields, for `models.multi_task.MultiTask`.

    `weight`, `id` and `source_id` keep their names.
    """

    task: str
    dataset: Dataset

    def __post_init__(self) -> None:
        if not self.task.isidentifier():
            raise ValueError(f"task must be a name of letters, digits and _ (got {self.task!r})")

    def check(self) -> None:
        self.dataset.check()

    def train_batches(self, batch_size: int, seed: int, shard: Shard = WHOLE) -> Batches:
        return _Named(self.dataset.train_batches(batch_size, seed, shard), self.task)

    def eval_batches(self, batch_size: int, max_examples: int | None = None, shard: Shard = WHOLE) -> Batches:
        return _Named(self.dataset.eval_batches(batch_size, max_examples, shard), self.task)


class _Named:
    """Batches with other names."""

    def __init__(self, batches: Batches, task: str):
        self._batches, self._task = batches, task
        self.num_examples = batches.num_examples
        self.identity: Mapping[str, Any] = {**batches.identity, "task": task}
        self.facts = batches.facts

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        return self._name(self._batches[k])

    def samples(self) -> Iterator[dict[str, np.ndarray]]:
        return map(self._name, self._batches.samples())

    def _name(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name if name in _COMMON else f"{self._task}/{name}": values for name, values in batch.items()}
