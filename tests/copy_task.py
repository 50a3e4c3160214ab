"""A task that needs a search to decode: sentences are to be copied. A small model with attention, and its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import toy
from flax import nnx

from raylingvo import ops
from raylingvo.data.dataset import FixedShapeDataset
from raylingvo.experiment import Experiment
from raylingvo.models.task import Task
from raylingvo.training.learner import Learner

# B sentences, each in T positions: its tokens, then EOS to the end. U of them at a time. k hyps, N = B*k slots
# (hyp-major), D features, V tokens.
T, D, V = 6, 32, 12
SOS, EOS = 1, 2


class Net(nnx.Module):
    """Scores of the next token from the one before it and what it attends to, by step and place alone."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(V, D, rngs=rngs)
        self.place = nnx.Embed(T, D, rngs=rngs)
        self.query = nnx.Linear(D, D, rngs=rngs)
        self.out = nnx.Linear(2 * D, V, rngs=rngs)

    def __call__(self, src_BxT: jax.Array, ids_BxU: jax.Array, steps_U: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities f32[B, U, V] of the token after each of `ids`, and attention f32[B, U, T]."""
        energy_UxT = self.query(self.place(steps_U)) @ self.place.embedding[...].T
        probs_BxUxT = jnp.broadcast_to(jax.nn.softmax(energy_UxT), (*ids_BxU.shape, T))
        context_BxUxD = jnp.einsum("but,btd->bud", probs_BxUxT, self.embed(src_BxT))
        hidden_BxUx2D = jnp.concatenate([context_BxUxD, self.embed(ids_BxU)], axis=-1)
        return jax.nn.log_softmax(self.out(hidden_BxUx2D)), probs_BxUxT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copy(Task):
    """Batches: src i32[B, T], weight f32[B], id i64[B]. Metric of decoding: the share of sentences copied exactly."""

    num_hyps_per_beam: int = 3

    def init(self, rngs: nnx.Rngs) -> Net:
        return Net(rngs)

    def loss(self, model: Any, batch: Any, rng: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        metrics = self.eval_metrics(model, batch)
        return metrics["loss"][0], metrics

    def eval_metrics(self, model: Any, batch: Any) -> dict[str, Any]:
        labels_BxT, weight_B = batch["src"], batch["weight"]
        ids_BxT = jnp.pad(labels_BxT[:, :-1], ((0, 0), (1, 0)), constant_values=SOS)
        log_probs_BxTxV, _ = model(labels_BxT, ids_BxT, jnp.arange(T))
        # Up to the first EOS.
        counts_BxT = (ids_BxT != EOS) * weight_B[:, None]
        xent_BxT = optax.losses.softmax_cross_entropy_with_integer_labels(log_probs_BxTxV, labels_BxT)
        return {"loss": ((xent_BxT * counts_BxT).sum() / counts_BxT.sum(), counts_BxT.sum())}

    def decode(self, model: Any, batch: Any) -> Any:
        k, B = self.num_hyps_per_beam, batch["src"].shape[0]
        src_NxT = jnp.tile(batch["src"], (k, 1))

        def step(ids_N: jax.Array, step_N: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            log_probs_Nx1xV, probs_Nx1xT = model(src_NxT, ids_N[:, None], step_N[:1])
            return log_probs_Nx1xV[:, 0], probs_Nx1xT[:, 0], step_N + 1

        return ops.beam_search(
            step,
            jnp.zeros(k * B, jnp.int32),
            num_beams=B,
            num_hyps_per_beam=k,
            max_steps=T,
            eos_id=EOS,
            start_ids=jnp.full(B, SOS, jnp.int32),
        )

    def encode_lines(self, lines: Sequence[str]) -> dict[str, np.ndarray]:
        """A line is a sentence of numbers."""
        src_BxT = np.full((len(lines), T), EOS, np.int32)
        for row, line in zip(src_BxT, lines, strict=True):
            row[: len(line.split())] = [int(token) for token in line.split()]
        return {"src": src_BxT, "weight": np.ones(len(lines), np.float32), "id": np.arange(len(lines))}

    def postprocess(self, decoded: Any, batch: Any) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, Any]]:
        outputs, right = [], []
        for i in np.flatnonzero(batch["weight"]):
            source = [token for token in batch["src"][i].tolist() if token != EOS]
            hyps = [ids[: max(n - 1, 0)].tolist() for ids, n in zip(decoded.ids[i], decoded.lens[i], strict=True)]
            outputs.append((str(batch["id"][i]), {"source": source, "hyps": hyps}))
            right.append(hyps[0] == source)
        return outputs, {"accuracy": (float(np.mean(right)), float(len(right)))}


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The Source of `Sentences`."""

    src_MxT: np.ndarray

    def __len__(self) -> int:
        return len(self.src_MxT)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"src": self.src_MxT[indices], "id": indices}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sentences(FixedShapeDataset):
    """`size` random sentences of 1 to T - 1 tokens."""

    size: int
    seed: int

    def open(self) -> Rows:
        random = np.random.default_rng(self.seed)
        length_Mx1 = random.integers(1, T, (self.size, 1))
        tokens_MxT = random.integers(EOS + 1, V, (self.size, T))
        return Rows(np.where(np.arange(T) < length_Mx1, tokens_MxT, EOS).astype(np.int32))


def experiment(**train: Any) -> Experiment:
    """An experiment that learns to copy; train: fields of `Train`."""
    base = toy.experiment(task=Copy(), learner=Learner(learning_rate=0.02), **train)
    datasets = {"train": Sentences(size=512, seed=0), "test": Sentences(size=30, seed=1)}
    return dataclasses.replace(base, name="toy.Copy", datasets=datasets)
