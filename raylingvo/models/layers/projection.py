"""A dense layer: matrix, bias, activation (Lingvo: core/layers.py, ProjectionLayer without batch norm)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from raylingvo.models.layers.activations import Activation, activation
from raylingvo.models.layers.initializers import xavier, zeros
from raylingvo.models.layers.variables import Initializer, param
from raylingvo.ops.product import einsum

# I inputs, O outputs.


class Projection(nnx.Module):
    """`activation(x @ kernel + bias)` over the last axis.

    kernel: f32[I, O], Xavier uniform. bias: f32[O], 0 at first; without one if `bias` is False. axes: the logical names
    of I and O. dtype: what is computed in; weights stay float32. Raises ValueError for an activation that there is not.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        activation: Activation = "none",
        kernel_init: Initializer | None = None,
        axes: tuple[str | None, str | None] = ("in", "out"),
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.kernel = param(rngs, kernel_init or xavier(), (in_features, out_features), axes)
        self.bias = param(rngs, zeros, (out_features,), axes[1:]) if bias else None
        self._activation = _checked(activation)
        self._dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., I] -> [..., O], of the layer's dtype."""
        y = einsum("...i,io->...o", x.astype(self._dtype), self.kernel[...].astype(self._dtype))
        if self.bias is not None:
            y += jnp.broadcast_to(self.bias[...].astype(self._dtype), y.shape)
        return activation(self._activation)(y)


def _checked(name: Activation) -> Activation:
    activation(name)
    return name
