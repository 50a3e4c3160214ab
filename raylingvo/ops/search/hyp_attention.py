"""Attention of one step of a search: of each hyp to its own history, or to its source."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from raylingvo.ops._native import Implementation, dispatch
from raylingvo.ops.search import _hyp_attention_cpp

# N slots, T rows of history or source positions, M slots or sources that have rows, H heads of queries and G of keys
# and values (G divides H), K features of a head.


class HypAttention(NamedTuple):
    """context: [N, H, K], of the values' dtype. probs: f32[N, T], the mean over heads."""

    context: jax.Array
    probs: jax.Array


def hyp_attention(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    lengths: jax.Array,
    slots: jax.Array | None = None,
    *,
    implementation: Implementation = "auto",
) -> HypAttention:
    """Softmax over the rows that a hyp has of dot products, and the mean of their values under it.

    The C++ one reads only those rows, where they lie; XLA gathers the history of all slots first.

    Args:
      query: [N, H, K], scaled.
      keys, values: [T, M, G, K]; head h of a query goes with head h // (H / G).
      lengths: i32[N], how many rows each has, from row 0 on; less than 1 counts as 1, more than T as T.
      slots: i32[T, N], in which slot row t of a hyp's history lies: `CacheIndex.slots`, M = N. None: M sources, and
        slot i reads column i % M of all rows.
      implementation: "auto", "xla" or "cpp"; "cpp" is for float32.

    Returns:
      `HypAttention`.

    Raises:
      ValueError: shapes do not fit, or "cpp" for another dtype.
      RuntimeError: implementation="cpp" where there is none.
    """
    N, H, K = query.shape
    T, M, G, _ = keys.shape
    if keys.shape != values.shape or keys.shape[3] != K or H % G or N % M or T < 1:
        raise ValueError(f"query, keys and values do not fit (got {query.shape}, {keys.shape} and {values.shape})")
    if lengths.shape != (N,) or (slots is not None and (slots.shape != (T, N) or M != N)):
        got = lengths.shape, None if slots is None else slots.shape
        raise ValueError(f"lengths must be [{N}], and slots [{T}, {N}] with as many keys (got {got[0]} and {got[1]})")
    if any(x.dtype != jnp.float32 for x in (query, keys, values)):
        if implementation == "cpp":
            dtypes = ", ".join(str(x.dtype) for x in (query, keys, values))
            raise ValueError(f"implementation='cpp' is for float32 (got {dtypes})")
        implementation = "xla"
    args = (query, keys, values, lengths, slots)
    return HypAttention(*dispatch(implementation, xla=_attend, cpp=_hyp_attention_cpp.attend, args=args))


def _attend(
    query: jax.Array, keys: jax.Array, values: jax.Array, lengths: jax.Array, slots: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    N, H, K = query.shape
    T, _, G, _ = keys.shape
    if slots is not None:
        keys, values = (rows[jnp.arange(T)[:, None], slots] for rows in (keys, values))
    query_RxMxGxJxK = query.reshape(-1, keys.shape[1], G, H // G, K)
    logits = jnp.einsum("rmgjk,tmgk->rmgjt", query_RxMxGxJxK, keys, preferred_element_type=jnp.float32)
    is_row_NxT = jnp.arange(T)[None] < jnp.maximum(lengths, 1)[:, None]
    is_row = is_row_NxT.reshape(*logits.shape[:2], 1, 1, T)
    probs = jax.nn.softmax(jnp.where(is_row, logits, -jnp.inf), axis=-1)
    context = jnp.einsum("rmgjt,tmgk->rmgjk", probs.astype(values.dtype), values)
    return context.reshape(N, H, K), probs.reshape(N, H, T).mean(axis=1)
