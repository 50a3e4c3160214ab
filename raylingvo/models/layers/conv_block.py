"""Convolution, batch normalisation and activation over padded sequences."""

from __future__ import annotations

import jax
from flax import nnx

from raylingvo.models.layers.activations import Activation, activation
from raylingvo.models.layers.batch_norm import BatchNorm
from raylingvo.models.layers.padded_conv import PaddedConv2D
from raylingvo.models.layers.time_windows import zero_padded

# B sequences of T frames with F columns (frequencies) of C channels; t, f, D of the result.


class ConvBlock(nnx.Module):
    """A convolution, its batch norm and an activation. Padded frames of the result are 0.

    conv: is made by the caller. norm: of conv's output features; None: there is none.
    conv_last: batch norm and activation come before the convolution, so norm is of its input features.
    Source: Lingvo core/layers.py, Conv2DLayer. (Its bn_fold_weights computes the same in another way.)
    """

    def __init__(
        self,
        conv: PaddedConv2D,
        norm: BatchNorm | None,
        *,
        activation: Activation = "relu",
        conv_last: bool = False,
    ) -> None:
        self.conv, self.norm = conv, norm
        self.activation, self.conv_last = activation, conv_last

    def __call__(
        self, x_BxTxFxC: jax.Array, paddings_BxT: jax.Array | None = None, *, training: bool = False
    ) -> tuple[jax.Array, jax.Array | None]:
        """[B, t, f, D] and, of the result, the paddings f32[B, t].

        training: the norm uses the batch, and its averages move.
        """
        if self.conv_last:
            x_BxTxFxC, paddings_BxT = self.conv(self._activate(x_BxTxFxC, paddings_BxT, training), paddings_BxT)
        else:
            x_BxTxFxC, paddings_BxT = self.conv(x_BxTxFxC, paddings_BxT)
            x_BxTxFxC = self._activate(x_BxTxFxC, paddings_BxT, training)
        return zero_padded(x_BxTxFxC, paddings_BxT), paddings_BxT

    def _activate(self, x: jax.Array, paddings: jax.Array | None, training: bool) -> jax.Array:
        if self.norm is not None:
            x = self.norm(x, paddings, training=training)
        return activation(self.activation)(x)
