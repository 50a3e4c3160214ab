"""A Transformer for translation as one writes it by hand in plain JAX: what ours is compared with.

Lingvo's: pre-norm, attention added to the normalised input, a trained scale for each feature of a head's queries,
sinusoid positions, no norm at the end; dropout of inputs and of what sub-layers give; smoothed labels; Adam with the
Transformer's schedule. The weights, which are ours in another arrangement, say all sizes: B pairs of S source and T
target tokens, D features, N heads of H, V words.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

DROPOUT, SMOOTHING = 0.1, 0.1
RATE, WARMUP, BETA1, BETA2, EPSILON = 3.0, 40_000, 0.9, 0.98, 1e-9


def _dropped(x: jax.Array, keys: Iterator[jax.Array] | None) -> jax.Array:
    if keys is None:
        return x
    return jnp.where(jax.random.bernoulli(next(keys), 1 - DROPOUT, x.shape), x / (1 - DROPOUT), 0.0)


def _norm(x: jax.Array, weights: tuple[jax.Array, jax.Array]) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weights[0] + weights[1]


def _dense(x: jax.Array, weights: tuple[jax.Array, jax.Array]) -> jax.Array:
    return x @ weights[0] + weights[1]


def _attention(layer: dict[str, Any], x: jax.Array, source: jax.Array, mask: jax.Array) -> jax.Array:
    """x [B, T, D] attends to source [B, S, D]. mask: bool, broadcasts to [B, N, T, S]."""
    scale_H = layer["scale"]
    H = len(scale_H)
    q, k, v = (
        _dense(y, layer[name]).reshape(*y.shape[:2], -1, H)
        for name, y in (("query", x), ("key", source), ("value", source))
    )
    q = q * jax.nn.softplus(scale_H) / (math.log(2) * math.sqrt(H))
    logits = jnp.einsum("btnh,bsnh->bnts", q, k)
    probs = jax.nn.softmax(jnp.where(mask, logits, -1e30))
    return _dense(jnp.einsum("bnts,bsnh->btnh", probs, v).reshape(x.shape), layer["output"])


def _stack(
    layers: list[dict[str, Any]],
    x: jax.Array,
    mask: jax.Array,
    keys: Iterator[jax.Array] | None,
    source: jax.Array | None = None,
    source_mask: jax.Array | None = None,
) -> jax.Array:
    for layer in layers:
        y = _norm(x, layer["self"]["norm"])
        x = y + _dropped(_attention(layer["self"], y, y, mask), keys)
        if source is not None and source_mask is not None:
            y = _norm(x, layer["cross"]["norm"])
            x = y + _dropped(_attention(layer["cross"], y, source, source_mask), keys)
        y = jax.nn.relu(_dense(_norm(x, layer["norm"]), layer["up"]))
        x = x + _dropped(_dense(y, layer["down"]), keys)
    return x


def _embedded(table: jax.Array, ids: jax.Array, keys: Iterator[jax.Array] | None) -> jax.Array:
    D = table.shape[1]
    frequencies = np.exp(np.arange(D // 2) * -math.log(1e4) / (D // 2 - 1)).astype(np.float32)
    angles = np.arange(ids.shape[1])[:, None] * frequencies
    positions = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    return _dropped(table[ids] * math.sqrt(D) + positions, keys)


def loss(weights: dict[str, Any], batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
    """Mean over target words of the smoothed labels' cross-entropy. Without a key there is no dropout."""
    dropouts = 2 + 2 * len(weights["encoder"]) + 3 * len(weights["decoder"])
    keys = None if key is None else iter(jax.random.split(key, dropouts))
    source_mask = (batch["src_paddings"] == 0)[:, None, None]
    source = _embedded(weights["source_embedding"], batch["src_ids"], keys)
    source = _stack(weights["encoder"], source, source_mask, keys)
    x = _embedded(weights["target_embedding"], batch["tgt_ids"], keys)
    causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    x = _stack(weights["decoder"], x, causal, keys, source, source_mask)
    logits = _dense(x, weights["softmax"])
    label_logit = jnp.take_along_axis(logits, batch["tgt_labels"][..., None], -1)[..., 0]
    others = (logits.sum(-1) - label_logit) / (logits.shape[-1] - 1)
    cross_entropy = jax.nn.logsumexp(logits, -1) - (1 - SMOOTHING) * label_logit - SMOOTHING * others
    real = 1 - batch["tgt_paddings"]
    return (cross_entropy * real).sum() / real.sum()


@functools.partial(jax.jit, donate_argnums=0)
def step(state: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> tuple[Any, jax.Array]:
    """(weights, first moments, second moments, number of steps) and a batch -> those after it, loss."""
    weights, m, v, t = state
    value, gradients = jax.value_and_grad(loss)(weights, batch, jax.random.fold_in(key, t))
    t = t + 1
    m = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, m, gradients)
    v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, v, gradients)
    rate = RATE * weights["source_embedding"].shape[1] ** -0.5 * jnp.minimum(t * WARMUP**-1.5, t**-0.5)
    rate *= jnp.sqrt(1 - BETA2**t) / (1 - BETA1**t)
    weights = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + EPSILON), weights, m, v)
    return (weights, m, v, t), value


class PlainJax:
    """The model in training."""

    def __init__(self, weights: dict[str, Any]) -> None:
        zeros = jax.tree.map(jnp.zeros_like, weights)
        self._state = (weights, zeros, jax.tree.map(jnp.zeros_like, weights), jnp.zeros((), jnp.int32))
        self._key = jax.random.key(0)

    def steps(self, batches: list[dict[str, np.ndarray]]) -> float:
        """A step for each batch; their mean loss."""
        values = []
        for batch in batches:
            self._state, value = step(self._state, batch, self._key)
            values.append(value)
        jax.block_until_ready(self._state)
        return sum(map(float, values)) / len(values)


def of_ours(params: Mapping[str, Any]) -> dict[str, Any]:
    """The weights for `loss`, from those of a `TransformerModule` (`TrainState.weights.params`); copies of them."""

    def dense(projection: Mapping[str, jax.Array], out: bool = False) -> tuple[jax.Array, jax.Array]:
        kernel, bias = jnp.copy(projection["kernel"]), jnp.copy(projection["bias"])
        rows = math.prod(kernel.shape[:-1]) if out else len(kernel)
        return kernel.reshape(rows, -1), bias.reshape(-1)

    def norm(of: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        return 1 + of["norm"]["scale"], jnp.copy(of["norm"]["bias"])

    def attention(block: Mapping[str, Any], kind: str) -> dict[str, Any]:
        weights = block[f"{kind}_attention"]
        return {
            "norm": norm(block[f"{kind}_residual"]),
            "scale": jnp.copy(weights["scale"]),
            "output": dense(weights["output"], out=True),
            **{name: dense(weights[name]) for name in ("query", "key", "value")},
        }

    def stack(of: Mapping[str, Any]) -> list[dict[str, Any]]:
        blocks = [of["blocks"][i] for i in sorted(of["blocks"], key=int)]
        return [
            {kind: attention(block, kind) for kind in ("self", "cross") if f"{kind}_attention" in block}
            | {"norm": norm(block["residual"]), **{name: dense(block["feed_forward"][name]) for name in ("up", "down")}}
            for block in blocks
        ]

    return {
        "source_embedding": jnp.copy(params["source_embedding"]["table"]),
        "target_embedding": jnp.copy(params["target_embedding"]["table"]),
        "encoder": stack(params["encoder"]),
        "decoder": stack(params["decoder"]),
        "softmax": (params["softmax"]["kernel"].T, jnp.copy(params["softmax"]["bias"])),
    }
