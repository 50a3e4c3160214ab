"""A task that answers lines of text without a search, and a run of it: for tests of what surrounds decoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import copy_task
import jax
import numpy as np
from flax import nnx

from raylingvo.actors.logdir import Logdir
from raylingvo.experiment import Checkpoints
from raylingvo.training.checkpoints import CheckpointWriter
from raylingvo.training.state import Model

SHAPES: list[tuple[int, int]] = []  # (rows, width) in which `Scored.decode` has been compiled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored(copy_task.Copy):
    """A line is a sentence of numbers; its scores, `num_hyps_per_beam` of them, are sums over its tokens.

    Batches have two widths, for at most two tokens and for more. An empty line has a note.
    """

    def encode_lines(self, lines: Sequence[str]) -> dict[str, np.ndarray]:
        widest = max(len(line.split()) for line in lines)
        return {**super().encode_lines(lines), "wide": np.zeros((len(lines), 2 if widest <= 2 else 4), np.float32)}

    def decode(self, model: Any, batch: Any) -> Any:
        SHAPES.append(batch["wide"].shape)
        return model.embed(batch["src"]).sum(axis=1)[:, : self.num_hyps_per_beam]

    def postprocess(self, decoded: Any, batch: Any) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, Any]]:
        outputs = []
        for row in np.flatnonzero(batch["weight"]):
            source = [token for token in batch["src"][row].tolist() if token != copy_task.EOS]
            note = {} if source else {"note": "empty line"}
            outputs.append((str(row), {"source": source, "scores": decoded[row].round(4).tolist(), **note}))
        return outputs, {}


EXPERIMENT = dataclasses.replace(copy_task.experiment(), task=Scored())


def write_run(logdir: Path) -> None:
    """A run with two checkpoints of untrained weights, 4 and 8; those of 8 are -3 times those of 4."""
    home = Logdir(logdir, EXPERIMENT)
    home.begin(["raylingvo"])
    home.update(id="Copy-1")
    home.close()
    weights = jax.tree.map(np.asarray, Model.split(EXPERIMENT.task.init(nnx.Rngs(0))))
    writer = CheckpointWriter(logdir, Checkpoints(), lambda line: None)
    for step, factor in ((4, 1), (8, -3)):
        scaled = jax.tree.map(lambda x, factor=factor: np.float32(factor) * x, weights)
        writer.save(step, {"weights": scaled}, {}, on_saved=lambda: None)
    writer.close()
