"""T5's buckets and the bias made of them."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled
from flax import nnx

from raylingvo.models.layers.relative_bias import RelativeBias, RelativeBiasConfig


def t5_bucket(offset: int, *, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128) -> int:
    """As the T5 paper's code has it, for one number."""
    bucket, n = 0, -offset
    if bidirectional:
        num_buckets //= 2
        bucket, n = (num_buckets if n < 0 else 0), abs(n)
    n = max(n, 0)
    exact = num_buckets // 2
    if n < exact:
        return bucket + n
    far = exact + int(math.log(n / exact) / math.log(max_distance / exact) * (num_buckets - exact) + 1e-6)
    return bucket + min(far, num_buckets - 1)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_buckets(bidirectional):
    offsets = np.arange(-300, 301)
    expected = [t5_bucket(int(o), bidirectional=bidirectional) for o in offsets]
    got = RelativeBiasConfig(bidirectional=bidirectional).bucket(jnp.asarray(offsets))
    # At the edges of buckets float32's logarithm decides, and it may decide otherwise.
    assert np.sum(np.asarray(got) != expected) <= 2


@pytest.mark.parametrize("queries, keys", [(1, 5), (5, 1), (4, 4), (3, 6)])
def test_without_positions_they_are_counted(queries, keys):
    bias = filled(lambda: RelativeBias(RelativeBiasConfig(bidirectional=True, num_buckets=8), 2, rngs=nnx.Rngs(0)))
    expected = bias.at(jnp.arange(queries)[None], jnp.arange(keys)[None])
    np.testing.assert_allclose(bias(queries, keys), expected, rtol=1e-6)
    assert expected.shape == (1, 2, queries, keys)


def test_bad_configs():
    with pytest.raises(ValueError, match="num_buckets must be a multiple of 4"):
        RelativeBiasConfig(num_buckets=6, bidirectional=True)
    with pytest.raises(ValueError, match="max_distance must be > 16"):
        RelativeBiasConfig(max_distance=16)
