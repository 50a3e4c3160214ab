"""How well a hyp has covered its source, as the n-best of a beam search counts it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

# N hyps, S source positions.


def log_coverage(covered_NxS: jax.Array, src_length_N: jax.Array | None, ratio: jax.Array | float) -> jax.Array:
    """f32[N]: the logarithms of the share of attention that each source position has got, at least 0.001 and at most
    0.5, summed.

    covered_NxS: the attention that a position has got over all steps. src_length_N: i32, positions that count; those
    beyond S have got none. None: all S. ratio: what a position gets if attention is shared out evenly.
    """
    S = covered_NxS.shape[1]
    log_NxS = jnp.log(jnp.clip(covered_NxS / ratio, 0.001, 0.5))
    if src_length_N is None:
        return jnp.sum(log_NxS, axis=1)
    log_N = jnp.sum(jnp.where(jnp.arange(S)[None] < src_length_N[:, None], log_NxS, 0.0), axis=1)
    return log_N + jnp.maximum(src_length_N - S, 0).astype(jnp.float32) * math.log(0.001)
