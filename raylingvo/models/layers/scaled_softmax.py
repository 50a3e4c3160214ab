"""The core of attention: softmax of dot products, and the values' mean under it.

B batch, T queries, S keys, N heads, K key/value heads, G = N / K, H dimension of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from raylingvo.models.layers.masks import MASKED
from raylingvo.ops.product import einsum


def softmax_context(
    query_BxTxNxH: jax.Array,
    key_BxSxKxH: jax.Array,
    value_BxSxKxH: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    logit_cap: float | None = None,
    extra_logit: float | None = None,
    drop: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> tuple[jax.Array, jax.Array]:
    """Returns the context [B, T, N, H], of the values' dtype, and the probabilities f32[B, N, T, S] before `drop`.

    Head n of the queries goes with head n // G of keys and values. mask: bool, broadcasts to [B, 1, T, S].
    bias: f32, broadcasts to [B, N, T, S], added to logits before the cap. drop: dropout of the weights.
    Probabilities that nobody uses cost nothing under jit: the context is divided, not they.
    """
    B, T, N, H = query_BxTxNxH.shape
    S, K = key_BxSxKxH.shape[1:3]
    grouped = K != N
    if grouped:
        query_BxTxKxGxH = query_BxTxNxH.reshape(B, T, K, N // K, H)
        logits = einsum("BTKGH,BSKH->BKGTS", query_BxTxKxGxH, key_BxSxKxH, preferred_element_type=jnp.float32)
        logits = logits.reshape(B, N, T, S)
    else:
        logits = einsum("BTNH,BSNH->BNTS", query_BxTxNxH, key_BxSxKxH, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + jnp.broadcast_to(bias, logits.shape)
    if logit_cap is not None:
        logits = logit_cap * jnp.tanh(logits / logit_cap)
    if mask is not None:
        logits = jnp.where(mask, logits, MASKED)
    # A shift of all logits changes nothing, so its gradient is exactly 0.
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    if extra_logit is not None:
        top = jnp.maximum(top, extra_logit)
    weights = jnp.exp(logits - top)
    total_BxNxTx1 = jnp.sum(weights, axis=-1, keepdims=True)
    if extra_logit is not None:
        total_BxNxTx1 = total_BxNxTx1 + jnp.exp(extra_logit - top)
    dropped = drop(weights).astype(value_BxSxKxH.dtype)
    if grouped:
        dropped = dropped.reshape(B, K, N // K, T, S)
        context = einsum("BKGTS,BSKH->BTKGH", dropped, value_BxSxKxH).reshape(B, T, N, H)
    else:
        context = einsum("BNTS,BSNH->BTNH", dropped, value_BxSxKxH)
    context = (context / total_BxNxTx1.swapaxes(1, 2)).astype(value_BxSxKxH.dtype)
    return context, weights / total_BxNxTx1
