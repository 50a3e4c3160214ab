"""The trained scale that attention gives each feature of its queries (Lingvo: PerDimScaleLayer)."""

from __future__ import annotations

import math

import jax
from flax import nnx

# 1 / softplus(0): scales of 0 divide by the square root of D, as usual.
_UNIT = math.log2(math.e)


def scale_queries(queries: jax.Array, per_dim_scale_D: nnx.Param[jax.Array] | jax.Array | None) -> jax.Array:
    """queries [..., D], each feature times softplus(per_dim_scale) / (ln 2 * sqrt(D)); of the queries' dtype.

    per_dim_scale_D: f32[D], trained, at first 0. The factor is computed in float32. None: 1 / sqrt(D) it is.
    """
    if per_dim_scale_D is None:
        return queries * queries.shape[-1] ** -0.5
    factor_D = jax.nn.softplus(per_dim_scale_D[...]) * (_UNIT * per_dim_scale_D.shape[0] ** -0.5)
    return queries * factor_D.reshape((1,) * (queries.ndim - 1) + (-1,)).astype(queries.dtype)
