"""The position-wise network of a Transformer (Lingvo: TransformerFeedForwardLayer; GShard: DenseReluDense).

B batch, T time, D model dimension, F inner dimension, O dimension of the output, which is D by default.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from raylingvo.models.layers.activations import Activation, activation
from raylingvo.models.layers.batch_norm import BatchNorm
from raylingvo.models.layers.dropout import dropout, split
from raylingvo.models.layers.initializers import uniform_unit_scaling, xavier
from raylingvo.models.layers.projection import Projection
from raylingvo.models.layers.residual import Residual, ResidualConfig

FeedForwardInit = Literal["xavier", "gshard"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedForwardConfig:
    """What a `FeedForward` is. The defaults are those of Lingvo's Transformer.

    hidden_dim: F. gated: the inner layer is activation(x gate) * (x up) instead of activation(x up): GShard's has
    "gelu_tanh", BERT's "silu". init: "xavier", or "gshard": U(-l, l) with l = sqrt(3 / rows).
    dropout_rate: of the inner layer.
    """

    hidden_dim: int
    activation: Activation = "relu"
    gated: bool = False
    use_bias: bool = True
    init: FeedForwardInit = "xavier"
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.hidden_dim <= 0:
            raise ValueError(f"hidden_dim must be > 0 (got {self.hidden_dim})")
        activation(self.activation)
        if self.init not in get_args(FeedForwardInit):
            raise ValueError(f"init must be one of {get_args(FeedForwardInit)} (got {self.init!r})")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate must be in [0, 1) (got {self.dropout_rate})")


class FeedForward(nnx.Module):
    """Weights: up [D, F], gate [D, F] if gated, down [F, O]; a bias for each if configured. out_dim: O; None: D."""

    def __init__(
        self,
        config: FeedForwardConfig,
        dim: int,
        *,
        rngs: nnx.Rngs,
        out_dim: int | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        if out_dim is not None and out_dim < 1:
            raise ValueError(f"out_dim must be >= 1 (got {out_dim})")
        self.config = config
        init = xavier() if config.init == "xavier" else uniform_unit_scaling()

        def into(kind: Activation) -> Projection:
            axes = ("embed", "mlp")
            return Projection(
                dim,
                config.hidden_dim,
                bias=config.use_bias,
                activation=kind,
                kernel_init=init,
                axes=axes,
                dtype=dtype,
                rngs=rngs,
            )

        self.gate = into(config.activation) if config.gated else None
        self.up = into("none" if config.gated else config.activation)
        self.down = Projection(
            config.hidden_dim,
            dim if out_dim is None else out_dim,
            bias=config.use_bias,
            kernel_init=init,
            axes=("mlp", "embed"),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, x_BxTxD: jax.Array, nonpadding_BxTx1: jax.Array | None = None, *, rng: jax.Array | None = None
    ) -> jax.Array:
        """[B, T, D] -> [B, T, O], 0 where `nonpadding` is."""
        hidden_BxTxF = self.up(x_BxTxD)
        if self.gate is not None:
            hidden_BxTxF = self.gate(x_BxTxD) * hidden_BxTxF
        y_BxTxO = self.down(dropout(hidden_BxTxF, self.config.dropout_rate, rng))
        return y_BxTxO if nonpadding_BxTx1 is None else y_BxTxO * nonpadding_BxTx1.astype(y_BxTxO.dtype)


class ResidualFeedForward(nnx.Module):
    """A `FeedForward` in its `Residual` (Lingvo: TransformerFeedForwardLayer).

    out_dim: O; None: D. If it is not D, what is added to is not the input x but shortcut_norm(shortcut(x)): a matrix
    [D, O] and a batch norm, of padded positions too. Raises ValueError unless the residual is then "pre" and adds the
    input or nothing.
    """

    def __init__(
        self,
        config: FeedForwardConfig,
        residual: ResidualConfig,
        dim: int,
        *,
        rngs: nnx.Rngs,
        out_dim: int | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.residual = Residual(residual, dim, rngs=rngs, dtype=dtype)
        self.inner = FeedForward(config, dim, out_dim=out_dim, rngs=rngs, dtype=dtype)
        if out_dim in (None, dim):
            return
        if residual.position != "pre" or residual.skip == "normalized":
            raise ValueError(
                f"out_dim must be {dim} or None for position {residual.position!r} and skip {residual.skip!r} "
                f"(got {out_dim})"
            )
        if residual.skip == "input":
            self.shortcut = Projection(dim, out_dim, bias=False, axes=("embed", None), dtype=dtype, rngs=rngs)
            self.shortcut_norm = BatchNorm(out_dim, rngs=rngs, dtype=dtype)

    def __call__(
        self, x_BxTxD: jax.Array, nonpadding_BxTx1: jax.Array | None = None, *, rng: jax.Array | None = None
    ) -> jax.Array:
        """[B, T, D] -> [B, T, O]. rng: a key in training, when a batch norm uses the batch and its averages move."""
        inner_rng, residual_rng = split(rng, 2)
        entered_BxTxD = self.residual.enter(x_BxTxD, nonpadding_BxTx1)
        y_BxTxO = self.inner(entered_BxTxD, nonpadding_BxTx1, rng=inner_rng)
        if hasattr(self, "shortcut"):
            x_BxTxD = self.shortcut_norm(self.shortcut(x_BxTxD), training=rng is not None)
        return self.residual.leave(x_BxTxD, entered_BxTxD, y_BxTxO, residual_rng)
