"""Made-up data whose content does not matter: to measure speed and memory, and to compile."""

from __future__ import annotations

import dataclasses

import numpy as np

from raylingvo.data.dataset import FixedShapeDataset


@dataclasses.dataclass(frozen=True, eq=False)
class ConstantRows:
    """The Source of this module."""

    length: int
    size: int

    def __len__(self) -> int:
        return self.size

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """ids, labels, segment_ids and segment_pos i32[B, T] of 1, paddings f32[B, T] of 0, id i64[B]."""
        ones = np.ones((len(indices), self.length), np.int32)
        fields = dict.fromkeys(("ids", "labels", "segment_ids", "segment_pos"), ones)
        return {**fields, "paddings": np.zeros(ones.shape, np.float32), "id": indices}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticPackedRows(FixedShapeDataset):
    """Packed rows of `length` tokens, all of them 1, as Lingvo's giant language models are timed with.

    (Lingvo: SyntheticTrain; its ids are the labels one position later, here 1 as well.) size: rows of an epoch.
    """

    length: int
    size: int = 1 << 20

    def __post_init__(self) -> None:
        for name in ("length", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")

    def open(self) -> ConstantRows:
        return ConstantRows(self.length, self.size)
