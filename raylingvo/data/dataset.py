"""What a dataset is: a frozen description that opens to random-access examples."""

from __future__ import annotations

import abc
import dataclasses
from typing import Protocol

import numpy as np


class Source(Protocol):
    """Random access to the examples of an opened dataset."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices` (i64[B], each in [0, len)), in that order: field -> array with leading axis B."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset(abc.ABC):
    """Where examples come from, as configuration. Reading starts in `open`."""

    def check(self) -> None:  # noqa: B027 - most data need no check
        """Raises RequestError, naming the fix, if the data are not there. Cheap: called before anything starts."""

    @abc.abstractmethod
    def open(self) -> Source:
        """The examples. Raises RequestError if the data are missing or unreadable."""
