"""LeNet-5 as Lingvo trains it on MNIST (tasks/image/params/mnist.py): 763,810 weights for ten classes."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from raylingvo.models.image.classifier import ImageModel
from raylingvo.models.layers.conv import ConvReluPool
from raylingvo.models.layers.initializers import xavier

# B images of 28x28 pixels, V classes.


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeNet5(ImageModel):
    """Two convolutions and two dense layers, for images u8[B, 28, 28, 1].

    dropout: the share of elements that training drops after each pooling; in [0, 1).
    """

    num_classes: int = 10
    dropout: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1) (got {self.dropout})")

    def build(self, rngs: nnx.Rngs) -> LeNet5Module:
        return LeNet5Module(self, rngs)


class LeNet5Module(nnx.Module):
    """The network: standardise; twice 5x5 convolution, ReLU, 2x2 max-pool and dropout; dense with ReLU; softmax.

    Kernels are Xavier uniform, biases 0. It holds no random state: dropout draws from the key of the call.
    """

    def __init__(self, config: LeNet5, rngs: nnx.Rngs) -> None:
        self.conv1 = ConvReluPool(1, 20, 5, rngs=rngs)
        self.conv2 = ConvReluPool(20, 50, 5, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)
        self.hidden = nnx.Linear(7 * 7 * 50, 300, kernel_init=xavier(), rngs=rngs)
        self.softmax = nnx.Linear(300, config.num_classes, kernel_init=xavier(), rngs=rngs)

    def __call__(self, image_Bx28x28x1: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """u8[B, 28, 28, 1] -> logits f32[B, V]. rng: a key in training; None in evaluation, without dropout."""
        rng1, rng2 = (None, None) if rng is None else jax.random.split(rng)
        x_Bx28x28x1 = standardize(image_Bx28x28x1)
        x_Bx14x14x20 = self._drop(self.conv1(x_Bx28x28x1), rng1)
        x_Bx7x7x50 = self._drop(self.conv2(x_Bx14x14x20), rng2)
        x_Bx300 = jax.nn.relu(self.hidden(x_Bx7x7x50.reshape(-1, 7 * 7 * 50)))
        return self.softmax(x_Bx300)

    def _drop(self, x: jax.Array, rng: jax.Array | None) -> jax.Array:
        return self.dropout(x, deterministic=rng is None, rngs=rng)


def standardize(image_BxHxWxC: jax.Array) -> jax.Array:
    """(x - mean) / max(std, 1/sqrt(N)) of each image's own N = H*W*C values, as f32.

    The lower bound keeps an empty image finite. TensorFlow: image.per_image_standardization.
    """
    x = image_BxHxWxC.astype(jnp.float32)
    axes = (1, 2, 3)
    least = 1 / math.sqrt(math.prod(x.shape[1:]))
    return (x - x.mean(axes, keepdims=True)) / jnp.maximum(x.std(axes, keepdims=True), least)
