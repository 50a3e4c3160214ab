"""A Transformer language model as one writes it by hand, in plain JAX and in PyTorch: what ours is compared with.

Pre-norm blocks of causal attention and a GELU layer, learned positions, layer norms with bias, the softmax tied to the
embedding; Adam. B sequences of T tokens, D features, N heads of H, F features of the inner layer, V tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

VOCABULARY, LAYERS, FEATURES, HEADS, LENGTH, BATCH = 256, 6, 384, 6, 128, 16
RATE, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-6


def init(key: jax.Array) -> dict[str, Any]:
    """The weights: matrices N(0, 1 / rows), biases 0."""

    def matrix(rows: int, columns: int) -> jax.Array:
        nonlocal key
        key, own = jax.random.split(key)
        return jax.random.normal(own, (rows, columns)) * rows**-0.5

    def norm() -> tuple[jax.Array, jax.Array]:
        return jnp.ones(FEATURES), jnp.zeros(FEATURES)

    def dense(rows: int, columns: int) -> tuple[jax.Array, jax.Array]:
        return matrix(rows, columns), jnp.zeros(columns)

    layers = [
        {
            "norm1": norm(),
            "query": dense(FEATURES, FEATURES),
            "key": dense(FEATURES, FEATURES),
            "value": dense(FEATURES, FEATURES),
            "output": dense(FEATURES, FEATURES),
            "norm2": norm(),
            "up": dense(FEATURES, 4 * FEATURES),
            "down": dense(4 * FEATURES, FEATURES),
        }
        for _ in range(LAYERS)
    ]
    embedding = matrix(FEATURES, VOCABULARY).T
    return {"embedding": embedding, "position": 0.02 * matrix(LENGTH, FEATURES), "layers": layers, "norm": norm()}


def _norm(x: jax.Array, weights: tuple[jax.Array, jax.Array]) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weights[0] + weights[1]


def _dense(x: jax.Array, weights: tuple[jax.Array, jax.Array]) -> jax.Array:
    return x @ weights[0] + weights[1]


def loss(weights: dict[str, Any], ids_BxT: jax.Array, labels_BxT: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    x = weights["embedding"][ids_BxT] * math.sqrt(FEATURES) + weights["position"]
    causal = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
    for layer in weights["layers"]:
        y = _norm(x, layer["norm1"])
        q, k, v = (_dense(y, layer[name]).reshape(*y.shape[:2], HEADS, -1) for name in ("query", "key", "value"))
        logits = jnp.einsum("btnh,bsnh->bnts", q, k) / math.sqrt(q.shape[-1])
        probs = jax.nn.softmax(jnp.where(causal, logits, -1e30))
        context = jnp.einsum("bnts,bsnh->btnh", probs, v).reshape(y.shape)
        x = x + _dense(context, layer["output"])
        x = x + _dense(jax.nn.gelu(_dense(_norm(x, layer["norm2"]), layer["up"])), layer["down"])
    logits = _norm(x, weights["norm"]) @ weights["embedding"].T
    label_logits = jnp.take_along_axis(logits, labels_BxT[..., None], -1)[..., 0]
    return (jax.nn.logsumexp(logits, -1) - label_logits).mean()


@functools.partial(jax.jit, donate_argnums=0)
def step(state: Any, ids_BxT: jax.Array, labels_BxT: jax.Array) -> tuple[Any, jax.Array]:
    """(weights, first moments, second moments, number of steps) and a batch -> those after it, loss."""
    weights, m, v, t = state
    value, gradients = jax.value_and_grad(loss)(weights, ids_BxT, labels_BxT)
    t = t + 1
    m = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, m, gradients)
    v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, v, gradients)
    rate = RATE * jnp.sqrt(1 - BETA2**t) / (1 - BETA1**t)
    weights = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + EPSILON), weights, m, v)
    return (weights, m, v, t), value


class PlainJax:
    """The model in training."""

    def __init__(self) -> None:
        weights = init(jax.random.key(0))
        zeros = jax.tree.map(jnp.zeros_like, weights)
        self.state = (weights, zeros, jax.tree.map(jnp.zeros_like, weights), jnp.zeros(()))

    def steps(self, batches: list[tuple[np.ndarray, np.ndarray]]) -> float:
        """A step for each batch; the last one's loss."""
        for ids, labels in batches:
            self.state, value = step(self.state, ids, labels)
        return float(jax.block_until_ready((self.state, value))[1])


def torch_steps(threads: int) -> Callable[[list[tuple[np.ndarray, np.ndarray]]], float]:
    """The same in PyTorch: a function like `PlainJax.steps`. Raises ImportError where torch is not installed."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]
    from torch.nn import functional  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(threads)
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(FEATURES, eps=1e-6), nn.LayerNorm(FEATURES, eps=1e-6)
            self.qkv, self.output = nn.Linear(FEATURES, 3 * FEATURES), nn.Linear(FEATURES, FEATURES)
            self.up, self.down = nn.Linear(FEATURES, 4 * FEATURES), nn.Linear(4 * FEATURES, FEATURES)

        def forward(self, x: Any) -> Any:
            y = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            y = functional.scaled_dot_product_attention(*y, is_causal=True).transpose(1, 2).reshape(x.shape)
            x = x + self.output(y)
            return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.position = nn.Embedding(VOCABULARY, FEATURES), nn.Embedding(LENGTH, FEATURES)
            nn.init.normal_(self.embedding.weight, std=FEATURES**-0.5)
            self.blocks, self.norm = nn.Sequential(*(Block() for _ in range(LAYERS))), nn.LayerNorm(FEATURES)

        def forward(self, ids: Any) -> Any:
            x = self.embedding(ids) * math.sqrt(FEATURES) + self.position.weight
            return functional.linear(self.norm(self.blocks(x)), self.embedding.weight)

    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), RATE, (BETA1, BETA2), EPSILON)

    def steps(batches: list[tuple[np.ndarray, np.ndarray]]) -> float:
        value = None
        for ids, labels in batches:
            optimizer.zero_grad()
            logits = model(torch.from_numpy(ids).long())
            value = functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(labels).long().flatten())
            value.backward()
            optimizer.step()
        return float(value.detach()) if value is not None else math.nan

    return steps
