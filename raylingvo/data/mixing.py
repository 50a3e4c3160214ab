"""Several datasets as one: mixed within batches or batch by batch, by weight, or one after another by step."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from raylingvo.data.batches import ENDLESS, WHOLE, Batches, OrderedBatches, Shard, ShuffledBatches, Source
from raylingvo.data.dataset import Dataset, FixedShapeDataset
from raylingvo.data.order import FIRST_FREE, Mixed, Order, Shuffled, check_weights, part_seed
from raylingvo.data.sampling import SampledOrder, Sampling
from raylingvo.data.sequence_dataset import SequenceDataset
from raylingvo.data.sequences import Column, Ragged, SequenceSource
from raylingvo.errors import RequestError

# S datasets that are mixed.


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Mixture(Dataset):
    """What mixtures share. The field `source_id` i32[B] of a batch says from which dataset an example is.

    (Of a mixture of mixtures: from which of the outermost.)
    """

    datasets: tuple[Dataset, ...]

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ValueError("datasets must have at least one (got none)")

    def check(self) -> None:
        for dataset in self.datasets:
            dataset.check()

    def eval_batches(self, batch_size: int, max_examples: int | None = None, shard: Shard = WHOLE) -> Batches:
        """All batches of each dataset, one dataset after the other; max_examples of each."""
        return _InTurn([dataset.eval_batches(batch_size, max_examples, shard) for dataset in self.datasets])

    def _check_number(self, name: str, numbers: Sequence[float], expected: int) -> None:
        if len(numbers) != expected:
            raise ValueError(
                f"{name} must have {expected} numbers for {len(self.datasets)} datasets (got {list(numbers)})"
            )

    def _parts(self, batch_size: int, seed: int, shard: Shard) -> list[Batches]:
        seeds = [part_seed(seed, i) for i in range(len(self.datasets))]
        return [
            dataset.train_batches(batch_size, own, shard) for dataset, own in zip(self.datasets, seeds, strict=True)
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixWithinBatches(_Mixture):
    """Every example of a batch is drawn from one of `datasets`, by weight; each goes through its own epochs.

    They must all be of one kind: of one shape, or sequences of the same columns and buckets (not packed: a row's
    neighbours would be from all of them).
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("weights", self.weights, len(self.datasets))
        check_weights(self.weights)
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

    def train_batches(self, batch_size: int, seed: int, shard: Shard = WHOLE) -> Batches:
        first = self.datasets[0]
        if isinstance(first, SequenceDataset):
            sequences = [dataset.open() for dataset in self.datasets if isinstance(dataset, SequenceDataset)]
            return first.batch(_JoinedSequences(sequences, self.weights), batch_size, seed, shard)
        sources = [dataset.open() for dataset in self.datasets if isinstance(dataset, FixedShapeDataset)]
        joined = _Joined(sources)
        orders: list[Order] = [
            Shuffled(np.arange(start, end), seed, stream=FIRST_FREE + s)
            for s, (start, end) in enumerate(itertools.pairwise(joined.borders))
        ]
        batches = ShuffledBatches(joined, batch_size, seed, shard, Mixed(orders, self.weights, seed))
        batches.identity |= {"sizes": np.diff(joined.borders).tolist(), "weights": list(self.weights)}
        return batches

    def eval_batches(self, batch_size: int, max_examples: int | None = None, shard: Shard = WHOLE) -> Batches:
        """Each example of each dataset once, or of the first `max_examples` of all; the weights do not matter."""
        first = self.datasets[0]
        if isinstance(first, SequenceDataset):
            sequences = [dataset.open() for dataset in self.datasets if isinstance(dataset, SequenceDataset)]
            return first.batch_in_order(_JoinedSequences(sequences, self.weights), batch_size, max_examples, shard)
        sources = [dataset.open() for dataset in self.datasets if isinstance(dataset, FixedShapeDataset)]
        return OrderedBatches(_Joined(sources), batch_size, max_examples, shard)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixBatches(_Mixture):
    """Every batch comes whole from one of `datasets`, by weight."""

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("weights", self.weights, len(self.datasets))
        check_weights(self.weights)

    def train_batches(self, batch_size: int, seed: int, shard: Shard = WHOLE) -> Batches:
        parts = self._parts(batch_size, seed, shard)
        # As an order of numbers: batch n of dataset s is S * n + s.
        orders: list[Order] = [_Every(len(parts), s) for s in range(len(parts))]
        return _Chosen(parts, Mixed(orders, self.weights, seed), seed, list(self.weights))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleBatches(_Mixture):
    """Every batch comes whole from one of `datasets`, drawn with shares that may change over the steps."""

    sampling: Sampling

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sampling.check(len(self.datasets))

    def train_batches(self, batch_size: int, seed: int, shard: Shard = WHOLE) -> Batches:
        parts = self._parts(batch_size, seed, shard)
        order = SampledOrder(self.sampling, len(parts), seed)
        return _Chosen(parts, order, seed, repr(self.sampling))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curriculum(_Mixture):
    """One dataset after another: the first until step `boundaries[0]`, the second from there to `boundaries[1]`, ..

    boundaries: steps, increasing, one fewer than datasets.
    """

    boundaries: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("boundaries", self.boundaries, len(self.datasets) - 1)
        if any(a >= b for a, b in itertools.pairwise((0, *self.boundaries))):
            raise ValueError(f"boundaries must be > 0 and increasing (got {list(self.boundaries)})")

    def train_batches(self, batch_size: int, seed: int, shard: Shard = WHOLE) -> Batches:
        parts = self._parts(batch_size, seed, shard)
        return _Chosen(parts, _Stages(self.boundaries), seed, list(self.boundaries))


class _Every:
    """The numbers first, first + step, first + 2 step, .."""

    def __init__(self, step: int, first: int):
        self._step, self._first = step, first

    def at(self, position_P: np.ndarray) -> np.ndarray:
        return position_P * self._step + self._first


class _Stages:
    """At position k of stage s: S times the position within the stage, and s."""

    def __init__(self, boundaries: Sequence[int]):
        self._starts = np.array([0, *boundaries])

    def at(self, position_P: np.ndarray) -> np.ndarray:
        stage_P = np.searchsorted(self._starts, position_P, side="right") - 1
        return (position_P - self._starts[stage_P]) * len(self._starts) + stage_P


class _Chosen:
    """Endless: batch k is batch n of part s, where S * n + s is the number that `order` has at k."""

    def __init__(self, parts: Sequence[Batches], order: Order, seed: int, settings: Any):
        self._parts, self._order = parts, order
        self.num_examples = sum(part.num_examples for part in parts)
        self.facts = _total_facts(parts)
        text = json.dumps([settings, [dict(part.identity) for part in parts]], sort_keys=True)
        data = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self.identity = {"seed": seed, "num_examples": self.num_examples, "data": data}

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        n, s = divmod(int(self._order.at(np.array([k]))[0]), len(self._parts))
        return _named(self._parts[s][n], s)

    def samples(self) -> Iterator[dict[str, np.ndarray]]:
        return _samples(self._parts)


class _InTurn:
    """All batches of one part, then all of the next."""

    def __init__(self, parts: Sequence[Batches]):
        self._parts = parts
        self._ends = list(itertools.accumulate(len(part) for part in parts))
        self.num_examples = sum(part.num_examples for part in parts)
        self.facts = _total_facts(parts)
        self.identity: Mapping[str, Any] = {"num_examples": self.num_examples}

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        s = bisect.bisect_right(self._ends, k)
        return _named(self._parts[s][k - self._ends[s] + len(self._parts[s])], s)

    def samples(self) -> Iterator[dict[str, np.ndarray]]:
        return _samples(self._parts)


class _Joined:
    """The examples of several sources, one source after the other, and which it is."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = sources
        self.borders = [0, *itertools.accumulate(len(source) for source in sources)]
        shapes = [_shapes(source) for source in sources]
        for s, found in enumerate(shapes):
            if found != shapes[0]:
                raise RequestError(f"datasets 0 and {s} cannot be mixed within batches: {shapes[0]} and {found}")

    def __len__(self) -> int:
        return self.borders[-1]

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        source_B = np.searchsorted(self.borders, indices, side="right") - 1
        out: dict[str, np.ndarray] = {"source_id": source_B.astype(np.int32)}
        for s, source in enumerate(self._sources):
            here = source_B == s
            if here.any():
                for name, values in source.take(indices[here] - self.borders[s]).items():
                    out.setdefault(name, np.empty((len(indices), *values.shape[1:]), values.dtype))[here] = values
        return out


class _JoinedSequences:
    """The sequences of several sources, one source after the other."""

    def __init__(self, parts: Sequence[SequenceSource], weights: Sequence[float]):
        self._parts = parts
        self.columns: Sequence[Column] = list(parts[0].columns)
        for s, part in enumerate(parts):
            if list(part.columns) != self.columns:
                raise RequestError(
                    f"datasets 0 and {s} cannot be mixed within batches: {self.columns} and {list(part.columns)}"
                )
        self.length_NxC = np.concatenate([part.length_NxC for part in parts])
        self.record_N = np.concatenate([part.record_N for part in parts])
        self.groups = [(len(part.length_NxC), weight) for part, weight in zip(parts, weights, strict=True)]
        self.facts = _total_facts(parts)
        self._starts = np.array([0, *itertools.accumulate(number for number, _ in self.groups)][:-1])

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


def _shapes(source: Source) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape[1:])}" for name, x in source.take(np.zeros(1, np.int64)).items()}


def _named(batch: dict[str, np.ndarray], source: int) -> dict[str, np.ndarray]:
    return batch | {"source_id": np.full(len(batch["weight"]), source, np.int32)}


def _samples(parts: Sequence[Batches]) -> Iterator[dict[str, np.ndarray]]:
    for s, part in enumerate(parts):
        for batch in part.samples():
            yield _named(batch, s)


def _total_facts(parts: Sequence[Any]) -> dict[str, float]:
    """Counts are added up; what is no count is left out."""
    names = dict.fromkeys(name for part in parts for name in part.facts if name.startswith("num_"))
    return {name: sum(part.facts.get(name, 0.0) for part in parts) for name in names}
