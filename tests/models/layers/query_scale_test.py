import jax.numpy as jnp
import numpy as np
from filled import normal

from raylingvo.models.layers.query_scale import scale_queries


def test_the_formula():
    queries, scale = normal(2, 3, 4), normal(4, seed=1)
    factor = np.log1p(np.exp(np.asarray(scale, np.float64))) / np.log(2) / 2
    np.testing.assert_allclose(scale_queries(queries, scale), np.asarray(queries) * factor, rtol=1e-5)


def test_at_first_it_divides_by_the_root_and_keeps_the_dtype():
    queries = normal(2, 4).astype(jnp.bfloat16)
    scaled = scale_queries(queries, jnp.zeros(4))
    assert scaled.dtype == jnp.bfloat16
    np.testing.assert_allclose(scaled.astype(jnp.float32), queries.astype(jnp.float32) / 2, rtol=1e-2)
    np.testing.assert_array_equal(scale_queries(queries, None), queries / 2)
