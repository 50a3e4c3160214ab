"""Attention of one step of a search in C++: only the rows that a hyp has are read, and none is copied."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from raylingvo.ops import _native


def attend(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    lengths: jax.Array,
    slots: jax.Array | None,
    *,
    max_width: int = 16,
) -> tuple[jax.Array, jax.Array]:
    """As `hyp_attention`, for float32. max_width: floats of a register at most, for tests."""
    N, T = len(query), len(keys)
    results = (jax.ShapeDtypeStruct(query.shape, jnp.float32), jax.ShapeDtypeStruct((N, T), jnp.float32))
    slots = jnp.zeros((0, N), jnp.int32) if slots is None else slots
    context, probs = _native.call(
        "RaylingvoHypAttention",
        results,
        query,
        keys,
        values,
        lengths.astype(jnp.int32),
        slots.astype(jnp.int32),
        max_width=np.int64(max_width),
    )
    return context, probs
