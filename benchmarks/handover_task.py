"""Tasks that are nothing but weights, for benchmarks of hand-overs; in a module that actors can import."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from raylingvo.data.dataset import FixedShapeDataset
from raylingvo.models.task import Task

ARRAY_MIB = 16


class Arrays(nnx.Module):
    def __init__(self, number_of: int, size: int, dtype: str) -> None:
        self.arrays = nnx.List([nnx.Param(jnp.ones(size, dtype)) for _ in range(number_of)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlyWeights(Task):
    """`mebibytes` MiB of weights, in arrays of 16 MiB; a step changes all of them."""

    mebibytes: int = 256
    dtype: Literal["float32", "bfloat16"] = "float32"

    def init(self, rngs: nnx.Rngs) -> Arrays:
        return Arrays(self.mebibytes // ARRAY_MIB, (ARRAY_MIB << 20) // jnp.dtype(self.dtype).itemsize, self.dtype)

    def loss(self, model: Any, batch: Any, rng: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        loss = sum(jnp.mean(array[...].astype(jnp.float32)) for array in model.arrays)
        return jnp.asarray(loss), {"loss": (loss, 1.0)}

    def eval_metrics(self, model: Any, batch: Any) -> dict[str, Any]:
        return {"first": (model.arrays[0][0].astype(jnp.float32), jnp.sum(batch["weight"]))}

    def decode(self, model: Any, batch: Any) -> Any:
        return batch["weight"]

    def postprocess(self, decoded: Any, batch: Any) -> tuple[list[Any], dict[str, Any]]:
        return [], {"num_examples": (len(decoded), 1.0)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomWeights(OnlyWeights):
    """The same, but nothing in them repeats: on disk they take no less room than in memory, however they are packed."""

    def init(self, rngs: nnx.Rngs) -> Arrays:
        model = super().init(rngs)
        for array in model.arrays:
            # So small that a step of any learning rate changes them.
            array[...] = 1e-3 * jax.random.normal(rngs.params(), array.shape, array.dtype)
        return model


class OneNumber:
    def __len__(self) -> int:
        return 1

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"id": indices}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nothing(FixedShapeDataset):
    """One example without content."""

    def open(self) -> OneNumber:
        return OneNumber()
