"""Activation functions by their names in experiments (Lingvo: core/activations.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp

Activation = Literal[
    "none", "relu", "relu6", "leaky_relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu", "softplus", "squared_relu"
]

_FUNCTIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "none": lambda x: x,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.2),  # TensorFlow's default slope
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),  # with the error function
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "squared_relu": lambda x: jnp.square(jax.nn.relu(x)),
}
assert set(_FUNCTIONS) == set(get_args(Activation))


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function of this name. Raises ValueError, with the names there are, for another."""
    if name not in _FUNCTIONS:
        raise ValueError(f"activation must be one of {', '.join(_FUNCTIONS)} (got {name!r})")
    return _FUNCTIONS[name]
