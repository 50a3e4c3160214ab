"""Several datasets as one: mixed within batches or batch by batch, by weight, or one after another by step."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raylingvo.data.batches import ENDLESS, WHOLE, Batches, OrderedBatches, Shard, ShuffledBatches, Source
from raylingvo.data.dataset import Dataset, FixedShapeDataset
from raylingvo.data.order import Mixed, Order, Shuffled
from raylingvo.data.sequence_dataset import SequenceDataset
from raylingvo.data.sequences import Column, Ragged, SequenceSource

# S datasets that are mixed.


def _check_parts(datasets: Sequence[Dataset], name: str, numbers: Sequence[float], expected: int) -> None:
    if not datasets:
        raise ValueError("datasets must have at least one (got none)")
    if len(numbers) != expected:
        raise ValueError(f"{name} must have {expected} numbers for {len(datasets)} datasets (got {list(numbers)})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixWithinBatches(Dataset):
    """Every example of a batch is drawn from one of `datasets`, by weight; field `source_id` i32[B] says from which.

    They must all be of one kind: of one shape, or sequences of the same columns and buckets (not packed: a row's
    neighbours would be from all of them). Each goes through its own epochs.
    """

    datasets: tuple[Dataset, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_parts(self.datasets, "weights", self.weights, len(self.datasets))
        kinds = (FixedShapeDataset, SequenceDataset)
        if not any(all(isinstance(dataset, kind) for dataset in self.datasets) for kind in kinds):
            raise ValueError("datasets must be all of examples of one shape, or all of sequences")
        first = self.datasets[0]
        if isinstance(first, SequenceDataset):
            if first.packed_lengths:
                raise ValueError("datasets: packed ones cannot be mixed within batches; use MixBatches")
            for dataset in self.datasets:
                assert isinstance(dataset, SequenceDataset)
                if dataset.batching != first.batching:
                    raise ValueError("datasets must have the same buckets to be mixed within batches")

    def check(self) -> None:
        for dataset in self.datasets:
            dataset.check()

    def train_batches(self, batch_size: int, seed: int, shard: Shard = WHOLE) -> Batches:
        first = self.datasets[0]
        if isinstance(first, SequenceDataset):
            return first.batch(self._sequences(), batch_size, seed, shard)
        sources = self._sources()
        starts = _starts([len(source) for source in sources])
        orders: list[Order] = [
            Shuffled(np.arange(start, start + len(source)), seed, stream=1 + i)
            for i, (start, source) in enumerate(zip(starts, sources, strict=True))
        ]
        order = Mixed(orders, self.weights, seed) if len(orders) > 1 else orders[0]
        return ShuffledBatches(_Joined(sources), batch_size, seed, shard, order)

    def eval_batches(self, batch_size: int, max_examples: int | None = None, shard: Shard = WHOLE) -> Batches:
        """Each example of each dataset once; the weights do not matter."""
        first = self.datasets[0]
        if isinstance(first, SequenceDataset):
            return first.batch_in_order(self._sequences(), batch_size, max_examples, shard)
        return OrderedBatches(_Joined(self._sources()), batch_size, max_examples, shard)

    def _sources(self) -> list[Source]:
        return [dataset.open() for dataset in self.datasets if isinstance(dataset, FixedShapeDataset)]

    def _sequences(self) -> SequenceSource:
        parts = [dataset.open() for dataset in self.datasets if isinstance(dataset, SequenceDataset)]
        return _JoinedSequences(parts, self.weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixBatches(Dataset):
    """Every batch comes whole from one of `datasets`, by weight; field `source_id` i32[B] says from which."""

    datasets: tuple[Dataset, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_parts(self.datasets, "weights", self.weights, len(self.datasets))

    def check(self) -> None:
        for dataset in self.datasets:
            dataset.check()

    def train_batches(self, batch_size: int, seed: int, shard: Shard = WHOLE) -> Batches:
        parts = [dataset.train_batches(batch_size, seed, shard) for dataset in self.datasets]
        # As an order of numbers: batch n of dataset s is S * n + s.
        orders: list[Order] = [_Every(len(parts), s) for s in range(len(parts))]
        order = Mixed(orders, self.weights, seed)
        return _Chosen(parts, order, {"weights": list(self.weights)})

    def eval_batches(self, batch_size: int, max_examples: int | None = None, shard: Shard = WHOLE) -> Batches:
        """All batches of each dataset, one dataset after the other; max_examples of each."""
        return _InTurn([dataset.eval_batches(batch_size, max_examples, shard) for dataset in self.datasets])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curriculum(Dataset):
    """One dataset after another: the first until step `boundaries[0]`, the second from there to `boundaries[1]`, ..

    boundaries: steps, increasing, one fewer than datasets. Field `source_id` i32[B] says which it is.
    """

    datasets: tuple[Dataset, ...]
    boundaries: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_parts(self.datasets, "boundaries", self.boundaries, len(self.datasets) - 1)
        if any(a >= b for a, b in itertools.pairwise((0, *self.boundaries))):
            raise ValueError(f"boundaries must be > 0 and increasing (got {list(self.boundaries)})")

    def check(self) -> None:
        for dataset in self.datasets:
            dataset.check()

    def train_batches(self, batch_size: int, seed: int, shard: Shard = WHOLE) -> Batches:
        parts = [dataset.train_batches(batch_size, seed, shard) for dataset in self.datasets]
        return _Chosen(parts, _Stages(self.boundaries), {"boundaries": list(self.boundaries)})

    def eval_batches(self, batch_size: int, max_examples: int | None = None, shard: Shard = WHOLE) -> Batches:
        """All batches of each dataset, one dataset after the other; max_examples of each."""
        return _InTurn([dataset.eval_batches(batch_size, max_examples, shard) for dataset in self.datasets])


class _Every:
    """The numbers first, first + step, first + 2 step, .."""

    def __init__(self, step: int, first: int):
        self._step, self._first = step, first

    def at(self, position_P: np.ndarray) -> np.ndarray:
        return position_P * self._step + self._first


class _Stages:
    """At position k of stage s: S times the position within the stage, and s."""

    def __init__(self, boundaries: Sequence[int]):
        self._starts = [0, *boundaries]

    def at(self, position_P: np.ndarray) -> np.ndarray:
        stage_P = np.searchsorted(self._starts, position_P, side="right") - 1
        return (position_P - np.array(self._starts)[stage_P]) * len(self._starts) + stage_P


class _Chosen:
    """Endless: batch k is batch n of part s, where S * n + s is the number that `order` has at k."""

    def __init__(self, parts: Sequence[Batches], order: Order, settings: Mapping[str, Any]):
        self._parts, self._order = parts, order
        self.facts = _total_facts(parts)
        self.identity = {**settings, **_joined_identity(parts)}

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        n, s = divmod(int(self._order.at(np.array([k]))[0]), len(self._parts))
        return _named(self._parts[s][n], s)


class _InTurn:
    """All batches of one part, then all of the next."""

    def __init__(self, parts: Sequence[Batches]):
        self._parts = parts
        self._ends = list(itertools.accumulate(len(part) for part in parts))
        self.facts = _total_facts(parts)
        self.identity = _joined_identity(parts)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        s = bisect.bisect_right(self._ends, k)
        return _named(self._parts[s][k - self._ends[s] + len(self._parts[s])], s)


class _Joined:
    """The examples of several sources, one source after the other, and which it is."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = sources
        self._starts = np.array(_starts([len(source) for source in sources]))
        self._len = sum(len(source) for source in sources)

    def __len__(self) -> int:
        return self._len

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        source_B = np.searchsorted(self._starts, indices, side="right") - 1
        out: dict[str, np.ndarray] = {"source_id": source_B.astype(np.int32)}
        for s, source in enumerate(self._sources):
            here = source_B == s
            if here.any():
                for name, values in source.take(indices[here] - self._starts[s]).items():
                    out.setdefault(name, np.empty((len(indices), *values.shape[1:]), values.dtype))[here] = values
        return out


class _JoinedSequences:
    """The sequences of several sources, one source after the other."""

    def __init__(self, parts: Sequence[SequenceSource], weights: Sequence[float]):
        self._parts = parts
        self.columns: Sequence[Column] = parts[0].columns
        self.length_NxC = np.concatenate([part.length_NxC for part in parts])
        self.groups = [(len(part.length_NxC), weight) for part, weight in zip(parts, weights, strict=True)]
        self.facts = _total_facts(parts)
        self._starts = np.array(_starts([number for number, _ in self.groups]))

    def take(self, indices: np.ndarray) -> list[Ragged]:
        source_B = np.searchsorted(self._starts, indices, side="right") - 1
        # Source by source, then back into the order that was asked for.
        order = np.argsort(source_B, kind="stable")
        taken = [
            part.take(indices[order][source_B[order] == s] - self._starts[s]) for s, part in enumerate(self._parts)
        ]
        back = np.argsort(order)
        return [_concatenated([part[c] for part in taken]).take(back) for c in range(len(self.columns))]


def _concatenated(parts: Sequence[Ragged]) -> Ragged:
    return Ragged(np.concatenate([p.token_T for p in parts]), np.concatenate([p.length_B for p in parts]))


def _starts(numbers: Sequence[int]) -> list[int]:
    return [0, *itertools.accumulate(numbers)][:-1]


def _named(batch: dict[str, np.ndarray], source: int) -> dict[str, np.ndarray]:
    return batch | {"source_id": np.full(len(batch["weight"]), source, np.int32)}


def _total_facts(parts: Sequence[Any]) -> dict[str, float]:
    """Counts are added up; what is no count is left out."""
    names = dict.fromkeys(name for part in parts for name in part.facts if name.startswith("num_"))
    return {name: sum(part.facts.get(name, 0.0) for part in parts) for name in names}


def _joined_identity(parts: Sequence[Batches]) -> dict[str, Any]:
    total = sum(part.identity["num_examples"] for part in parts)
    return {"num_examples": total, "parts": [dict(part.identity) for part in parts]}
