"""The network of XEnDec: a Transformer that knows how often it has been trained."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx

from raylingvo.models.layers.attention import QueryScale
from raylingvo.models.mt.transformer_model import TransformerModel, TransformerModule


class TrainedSteps(nnx.Variable):
    """i32[], not trained: updates so far. Snapshots and checkpoints carry it, as they do moving statistics."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class XEnDecModel(TransformerModel):
    """A Transformer whose schedules within the loss go on where a run was stopped. The fields are those of Lingvo's.

    Differs from `TransformerModel` in its defaults: norms after sub-layers, residuals as they are, attention that
    starts smaller by the square root of 2 and has no trained scale.
    """

    norm_position: Literal["pre", "post"] = "post"
    normalized_residual: bool = False
    query_scale: QueryScale = "sqrt_dim"
    attention_init_scale: float = 2**-0.5

    def build(self, rngs: nnx.Rngs) -> XEnDecModule:
        return XEnDecModule(self, rngs)


class XEnDecModule(TransformerModule):
    """The network of `TransformerModule`, and `trained_steps`."""

    def __init__(self, config: XEnDecModel, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs)
        self.trained_steps = TrainedSteps(jnp.zeros((), jnp.int32))
