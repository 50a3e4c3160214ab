import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from raylingvo.models.layers.gradient_norm import clip_gradient_norm, with_clipped_gradient

TREE = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[3.0]])}


def _gradient(factor, max_norm):
    """Of factor * sum(x^2) / 2: factor * x, of norm factor * sqrt(14)."""

    def loss(tree):
        clipped = clip_gradient_norm(tree, max_norm)
        return factor * sum((x**2).sum() for x in jax.tree.leaves(clipped)) / 2

    return jax.grad(loss)(TREE)


@pytest.mark.parametrize(("factor", "scale"), [(1.0, 1.0), (10.0, 4 / np.sqrt(14)), (0.0, 0.0)])
def test_the_norm_of_all_together_is_at_most_the_bound(factor, scale):
    for got, x in zip(jax.tree.leaves(_gradient(factor, 4.0)), jax.tree.leaves(TREE), strict=True):
        np.testing.assert_allclose(got, scale * x, rtol=1e-6)


def test_a_gradient_that_is_not_finite_stays_so():
    for factor in (np.nan, np.inf):
        assert not any(jnp.isfinite(x).any() for x in jax.tree.leaves(_gradient(factor, 4.0)))


def test_values_and_the_rest_of_the_model_stay_as_they_are():
    layer, head = nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 1, rngs=nnx.Rngs(1))
    x = jnp.ones((2, 3))

    def loss(layer, head, clip):
        return 100 * head(with_clipped_gradient(layer, 0.5)(x) if clip else layer(x)).sum()

    plain, clipped = (nnx.value_and_grad(loss, argnums=(0, 1))(layer, head, clip) for clip in (False, True))
    assert plain[0] == clipped[0]
    plain_norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(plain[1][0])))
    for before, after in zip(jax.tree.leaves(plain[1][0]), jax.tree.leaves(clipped[1][0]), strict=True):
        np.testing.assert_allclose(after, before * 0.5 / plain_norm, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(plain[1][1]), jax.tree.leaves(clipped[1][1]))
