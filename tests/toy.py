"""A task of a few weights and its data, for tests of what surrounds a task: a regression with dropout."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from raylingvo.data.dataset import Dataset, FixedShapeDataset
from raylingvo.experiment import Checkpoints, Experiment, Reading, Snapshots, Train
from raylingvo.metrics.corpus_scores import CorpusScores
from raylingvo.models.task import Task
from raylingvo.training.learner import Learner

# B examples of 4 numbers, H hidden units.


class Net(nnx.Module):
    """Dense with tanh, dropout, dense; `seen` is a moving mean of the inputs, which training alone changes."""

    def __init__(self, task: Regression, rngs: nnx.Rngs) -> None:
        dtype = jnp.dtype(task.dtype)
        self.hidden = nnx.Linear(4, task.width, param_dtype=dtype, dtype=jnp.float32, rngs=rngs)
        self.out = nnx.Linear(task.width, 1, dtype=jnp.float32, rngs=rngs)
        self.dropout = nnx.Dropout(task.dropout)
        self.seen = nnx.BatchStat(jnp.zeros(4)) if task.statistics else None

    def __call__(self, x_Bx4: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        if rng is not None and self.seen is not None:
            self.seen[...] = 0.9 * self.seen[...] + 0.1 * jnp.nanmean(x_Bx4, axis=0)
        hidden_BxH = jnp.tanh(self.hidden(x_Bx4))
        return self.out(self.dropout(hidden_BxH, deterministic=rng is None, rngs=rng))[:, 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """Mean squared error of a small network. Batches: x f32[B, 4], y f32[B], weight f32[B], id i64[B]."""

    width: int = 6  # of the hidden layer
    dropout: float = 0.3
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the hidden layer's weights
    statistics: bool = True  # False: the module has no variables but its weights

    def init(self, rngs: nnx.Rngs) -> Net:
        return Net(self, rngs)

    def loss(self, model: Any, batch: Any, rng: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        metrics = _metrics(model(batch["x"], rng=rng), batch)
        return metrics["loss"][0], metrics

    def eval_metrics(self, model: Any, batch: Any) -> dict[str, Any]:
        return _metrics(model(batch["x"]), batch)

    def decode(self, model: Any, batch: Any) -> jax.Array:
        return model(batch["x"])

    def postprocess(self, decoded: np.ndarray, batch: Any) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, Any]]:
        real = np.flatnonzero(batch["weight"])
        outputs = [(str(batch["id"][i]), {"prediction": float(decoded[i])}) for i in real]
        squared_error = np.mean((decoded[real] - batch["y"][real]) ** 2)
        return outputs, {
            "num_outputs": (len(outputs), 1.0),
            "mean": (np.mean(decoded[real]), len(real)),
            "squared_error": (squared_error, len(real)),
        }

    def corpus_scores(self, outputs: Sequence[Mapping[str, Any]]) -> CorpusScores:
        """`range`, from the smallest to the largest prediction; and `last`, which depends on the order."""
        predictions = [output["prediction"] for output in outputs]
        return CorpusScores({"range": max(predictions) - min(predictions), "last": predictions[-1]}, {"range": "toy:1"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaled(Regression):
    """Outputs are `scale` times the network's, in evaluation and decoding; in training that is a metric alone."""

    scale: float = 1.0

    def loss(self, model: Any, batch: Any, rng: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        loss, metrics = super().loss(model, batch, rng)
        return loss, metrics | {"scale": (jnp.float32(self.scale), 1.0)}

    def eval_metrics(self, model: Any, batch: Any) -> dict[str, Any]:
        metrics = _metrics(self.scale * model(batch["x"]), batch)
        return metrics | {"scale": (jnp.float32(self.scale), 1.0)}

    def decode(self, model: Any, batch: Any) -> jax.Array:
        return self.scale * super().decode(model, batch)


def _metrics(y_B: jax.Array, batch: Any) -> dict[str, Any]:
    weight_B = batch["weight"]
    total = weight_B.sum()
    loss = jnp.where(weight_B > 0, weight_B * (y_B - batch["y"]) ** 2, 0).sum() / total
    return {"loss": (loss, total), "num_rows": ((weight_B > 0).sum().astype(jnp.float32), 1.0)}


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The Source of `Numbers`."""

    x_Nx4: np.ndarray
    y_N: np.ndarray

    def __len__(self) -> int:
        return len(self.y_N)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"x": self.x_Nx4[indices], "y": self.y_N[indices], "id": indices}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers(FixedShapeDataset):
    """`size` random points and a linear function of them; the function is NaN at the examples `nan_ids`."""

    size: int = 50
    nan_ids: tuple[int, ...] = ()

    def open(self) -> Rows:
        x_Nx4 = np.random.default_rng(7).normal(size=(self.size, 4)).astype(np.float32)
        y_N = x_Nx4 @ np.array([1, -2, 0.5, 3], np.float32)
        y_N[list(self.nan_ids)] = np.nan
        return Rows(x_Nx4, y_N)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumbersWhere(Numbers):
    """Numbers that open only where the environment has these variables."""

    environment: dict[str, str]

    def open(self) -> Rows:
        missing = self.environment.items() - os.environ.items()
        if missing:
            raise RuntimeError(f"not in the environment: {missing}")
        return super().open()


def experiment(
    *,
    task: Task | None = None,
    data: Dataset | None = None,
    learner: Learner | None = None,
    reading: Reading | None = None,
    **train: Any,
) -> Experiment:
    """An experiment on a toy task, Regression if none is given. train: fields of `Train` that differ from these."""
    defaults: dict[str, Any] = {
        "batch_size": 8,
        "max_steps": 12,
        "report_every_steps": 4,
        "snapshots": Snapshots(every_steps=3),
        "checkpoints": Checkpoints(every_seconds=None),
    }
    reading = reading or Reading(batch_size=7)
    return Experiment(
        name="toy.Regression",
        task=task or Regression(),
        datasets={"train": data or Numbers(), "test": Numbers(size=20)},
        learner=learner or Learner(learning_rate=0.05),
        train=Train(**(defaults | train)),
        eval={"test": reading},
        decode={"test": reading},
    )


def batches(num_batches: int, *, batch_size: int = 8, data: Dataset | None = None) -> list[dict[str, np.ndarray]]:
    """The first batches of the data, in order."""
    source = (data or Numbers()).open()
    positions = np.arange(num_batches * batch_size).reshape(num_batches, batch_size) % len(source)
    return [{**source.take(row), "weight": np.ones(batch_size, np.float32)} for row in positions]


def assert_bit_equal(actual: Any, expected: Any) -> None:
    """Two pytrees of arrays have the same structure, dtypes, shapes and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        name, a, b = jax.tree_util.keystr(path), np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert a.tobytes() == b.tobytes(), f"{name}: {a} is not {b}"


def aligned(x: np.ndarray) -> np.ndarray:
    """A copy, in memory that JAX would rather borrow than copy if it is large enough."""
    memory = np.empty(x.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy
