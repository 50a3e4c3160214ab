"""What surrounds a sub-layer of a Transformer: normalisation, dropout, and the sum with its input.

B batch, T time, D model dimension.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from raylingvo.models.layers.dropout import dropout
from raylingvo.models.layers.normalization import LayerNorm, RmsNorm

Norm = Literal["layer", "rms"]
NormPosition = Literal["pre", "post", "hybrid"]
Skip = Literal["input", "normalized", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualConfig:
    """What a `Residual` is. The defaults are those of Lingvo's feed-forward sub-layers.

    norm: layer norm, or RMS norm without a bias. direct_scale: the scale is stored as it is, not less 1; GShard's is.
    position: "pre": of the sub-layer's input; "post": of the sum; "hybrid": of the sub-layer's input and of its output
      (Primer). Lingvo: pre_layer_norm, primer_hybrid_norm.
    skip: what the output is added to: the input, the normalised input (Lingvo: add_unnormalized_input=False, as in
      the attention of its Transformer; only for position "pre"), or nothing (add_skip_connection=False).
    weight: of the sub-layer's output in the sum, if there is one. dropout_rate: of that output.
    zero_padded: padded positions are 0 before the norm (GShard).
    """

    norm: Norm = "layer"
    position: NormPosition = "pre"
    skip: Skip = "input"
    weight: float = 1.0
    dropout_rate: float = 0.0
    zero_padded: bool = False
    direct_scale: bool = False
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        for name, kind in (("norm", Norm), ("position", NormPosition), ("skip", Skip)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {get_args(kind)} (got {getattr(self, name)!r})")
        if self.skip == "normalized" and self.position != "pre":
            raise ValueError(f"position must be 'pre' for skip 'normalized' (got {self.position!r})")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate must be in [0, 1) (got {self.dropout_rate})")
        if self.epsilon <= 0:
            raise ValueError(f"epsilon must be > 0 (got {self.epsilon})")


def make_norm(config: ResidualConfig, dim: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> LayerNorm:
    """The norm that `config` names."""
    kind = LayerNorm if config.norm == "layer" else RmsNorm
    return kind(dim, rngs=rngs, epsilon=config.epsilon, direct_scale=config.direct_scale, dtype=dtype)  # pyright: ignore[reportArgumentType]


class Residual(nnx.Module):
    """`leave(x, entered, sublayer(entered))`, where entered = `enter(x)`. Norms: `norm`, and `post_norm` if hybrid."""

    def __init__(self, config: ResidualConfig, dim: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        self.config = config
        self.norm = make_norm(config, dim, rngs=rngs, dtype=dtype)
        hybrid = config.position == "hybrid"
        self.post_norm = make_norm(config, dim, rngs=rngs, dtype=dtype) if hybrid else None

    def enter(self, x_BxTxD: jax.Array, nonpadding_BxTx1: jax.Array | None = None) -> jax.Array:
        """What the sub-layer gets."""
        if self.config.position == "post":
            return x_BxTxD
        if self.config.zero_padded and nonpadding_BxTx1 is not None:
            x_BxTxD = x_BxTxD * nonpadding_BxTx1
        return self.norm(x_BxTxD)

    def leave(
        self, x_BxTxD: jax.Array, entered_BxTxD: jax.Array, y_BxTxD: jax.Array, rng: jax.Array | None
    ) -> jax.Array:
        """What the next sub-layer gets, of the sub-layer's output y."""
        config = self.config
        if self.post_norm is not None:
            y_BxTxD = self.post_norm(y_BxTxD)
        y_BxTxD = dropout(y_BxTxD, config.dropout_rate, rng)
        if config.skip != "none":
            weighted_BxTxD = y_BxTxD if config.weight == 1 else y_BxTxD * config.weight
            y_BxTxD = weighted_BxTxD + (x_BxTxD if config.skip == "input" else entered_BxTxD)
        return self.norm(y_BxTxD) if config.position == "post" else y_BxTxD
