"""A toy task whose metrics tell the number of tokens, and the loss of outputs: importable by the roles of a run."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from toy import Regression

TOKENS_PER_EXAMPLE = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words(Regression):
    """Regression whose examples pass for sentences of 5 tokens."""

    def loss(self, model: Any, batch: Any, rng: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        loss, metrics = super().loss(model, batch, rng)
        tokens = TOKENS_PER_EXAMPLE * (batch["weight"] > 0).sum().astype("float32")
        return loss, {**metrics, "log_pplx": (loss, tokens)}

    def postprocess(self, decoded: np.ndarray, batch: Any) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, Any]]:
        outputs, metrics = super().postprocess(decoded, batch)
        return outputs, {**metrics, "loss": metrics["squared_error"]}
