"""What a task whose outputs can be drawn gives a Decoder: `Pictures`."""

from __future__ import annotations

import abc
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from raylingvo.models.task import Batch

if TYPE_CHECKING:
    from flax import nnx


class DecodedRow(NamedTuple):
    """One real row of a batch. decoded: what the task's `decode` gave for the whole batch, as numpy."""

    decoded: Any
    batch: Mapping[str, np.ndarray]
    row: int


class Pictures(abc.ABC):
    """How some decoded examples are drawn, in three steps: host, device, host."""

    num_examples: int = 4  # the first of a dataset

    @abc.abstractmethod
    def inputs(self, rows: Sequence[DecodedRow]) -> Batch:
        """On the host: what `arrays` computes from, which is compiled for each of its shapes: let them be few.

        rows: one at least, `num_examples` at most.
        """

    @abc.abstractmethod
    def arrays(self, model: nnx.Module, inputs: Batch) -> Any:
        """On the device, traced by jit: a pytree of arrays."""

    @abc.abstractmethod
    def draw(self, arrays: Any, rows: Sequence[DecodedRow]) -> Mapping[str, bytes]:
        """On the host: what `arrays` gave, as numpy -> PNG files by name, such as "alignments"."""


class FirstRows:
    """The first rows of a dataset, in its order, out of batches that come in any."""

    def __init__(self, number: int):
        self._number = number
        self._found: list[tuple[tuple[Any, ...], DecodedRow]] = []
        self._seen = 0

    @property
    def rows(self) -> list[DecodedRow]:
        return [row for _, row in self._found]

    def add(self, decoded: Any, batch: Mapping[str, np.ndarray], numbers: Sequence[tuple[Any, ...]]) -> None:
        """numbers: what orders the real rows of the batch; [] if nothing but the order in which they come does."""
        real = np.flatnonzero(np.asarray(batch["weight"]) > 0).tolist()
        keys = numbers or [(self._seen + i,) for i in range(len(real))]
        self._seen += len(real)
        new = [(key, DecodedRow(decoded, batch, row)) for key, row in zip(keys, real, strict=True)]
        self._found = sorted([*self._found, *new], key=operator.itemgetter(0))[: self._number]
