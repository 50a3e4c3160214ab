"""Lightweight convolution: the convolution module of the Conformer (Gulati et al. 2020)."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from raylingvo.models.layers import dropout
from raylingvo.models.layers.activations import Activation, activation
from raylingvo.models.layers.batch_norm import BatchNorm
from raylingvo.models.layers.group_norm import GroupNorm
from raylingvo.models.layers.initializers import xavier, zeros
from raylingvo.models.layers.normalization import LayerNorm
from raylingvo.models.layers.padded_conv import DepthwiseConv2D
from raylingvo.models.layers.time_windows import TimeWindow
from raylingvo.models.layers.variables import param
from raylingvo.ops.product import einsum

# B sequences of T frames with D features.

Norm = Literal["batch", "group", "layer"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LConvConfig:
    """A lightweight convolution (Lingvo core/conformer_layer.py, LConvLayer).

    features: D. kernel_size: frames of a window.
    causal: a window ends with its frame; otherwise windows lie around it. A causal group norm is cumulative.
    norm: follows the convolution. num_groups: of a group norm (fewer if there are fewer features).
    activation: follows the norm. gate_activation: of the half that is gated, before it is.
    dropout_rate: of what is added to the input, in training.
    """

    features: int
    kernel_size: int
    causal: bool = False
    norm: Norm = "batch"
    num_groups: int = 32
    activation: Activation = "silu"
    gate_activation: Activation = "none"
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("features", "kernel_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm must be one of {', '.join(get_args(Norm))} (got {self.norm!r})")
        for name in (self.activation, self.gate_activation):
            activation(name)
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate must be in [0, 1) (got {self.dropout_rate})")


class LConv(nnx.Module):
    """x + linear(activation(norm(depthwise(a * sigmoid(g))))), where a and g are linear in layer_norm(x).

    Variables: layer_norm; start_kernel f32[D, 2, D] and start_bias f32[2, D], [:, 0] for a and [:, 1] for g; conv;
    norm; end_kernel f32[D, D] and end_bias f32[D].
    dtype: of the computation; weights and statistics are float32.
    """

    def __init__(
        self,
        config: LConvConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.config, self.dtype = config, dtype
        width = config.features
        self.layer_norm = LayerNorm(width, rngs=rngs, dtype=dtype)
        self.start_kernel = param(
            rngs,
            lambda key, shape, dtype: xavier()(key, (width, 2 * width), dtype).reshape(shape),
            (width, 2, width),
            ("embed", None, "mlp"),
        )
        self.start_bias = param(rngs, zeros, (2, width), (None, "mlp"))
        window = TimeWindow(size=(config.kernel_size, 1), causal=config.causal)
        self.conv = DepthwiseConv2D(width, window, rngs=rngs, dtype=dtype)
        match config.norm:
            case "batch":
                self.norm = BatchNorm(width, rngs=rngs, dtype=dtype)
            case "group":
                self.norm = GroupNorm(
                    width, num_groups=config.num_groups, cumulative=config.causal, rngs=rngs, dtype=dtype
                )
            case "layer":
                self.norm = LayerNorm(width, rngs=rngs, dtype=dtype)
        self.end_kernel = param(rngs, xavier(), (width, width), ("mlp", "embed"))
        self.end_bias = param(rngs, zeros, (width,), ("embed",))

    def __call__(
        self, x_BxTxD: jax.Array, paddings_BxT: jax.Array | None = None, *, rng: jax.Array | None = None
    ) -> jax.Array:
        """[B, T, D] -> [B, T, D]. rng: a key in training, when a batch norm uses the batch and its averages move."""
        config = self.config
        x_BxTx2xD = einsum(
            "btd,dge->btge", self.layer_norm(x_BxTxD), self.start_kernel[...].astype(self.dtype)
        ) + self.start_bias[...][None, None].astype(self.dtype)
        gated = activation(config.gate_activation)(x_BxTx2xD[:, :, 0]) * jax.nn.sigmoid(x_BxTx2xD[:, :, 1])
        y_BxTx1xD, _ = self.conv(gated[:, :, None], paddings_BxT)
        y = activation(config.activation)(self._norm(y_BxTx1xD, paddings_BxT, rng is not None)[:, :, 0])
        y = einsum("btd,de->bte", y, self.end_kernel[...].astype(self.dtype))
        y = y + self.end_bias[...][None, None].astype(self.dtype)
        return x_BxTxD.astype(self.dtype) + dropout.dropout(y, config.dropout_rate, rng)

    def _norm(self, x_BxTx1xD: jax.Array, paddings_BxT: jax.Array | None, training: bool) -> jax.Array:
        match self.norm:
            case BatchNorm():
                return self.norm(x_BxTx1xD, paddings_BxT, training=training)
            case GroupNorm():
                return self.norm(x_BxTx1xD, paddings_BxT)
            case _:
                return self.norm(x_BxTx1xD)
