"""A toy task whose metrics say how many tokens there were: importable by the roles of a run."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from toy import Regression

TOKENS_PER_EXAMPLE = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words(Regression):
    """Regression whose examples pass for sentences of 5 tokens."""

    def loss(self, model: Any, batch: Any, rng: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        loss, metrics = super().loss(model, batch, rng)
        tokens = TOKENS_PER_EXAMPLE * (batch["weight"] > 0).sum().astype("float32")
        return loss, {**metrics, "log_pplx": (loss, tokens)}
