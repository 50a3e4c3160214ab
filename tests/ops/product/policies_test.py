"""What a recomputed block keeps of its products."""

import jax
import jax.numpy as jnp
import pytest

from raylingvo.ops import _native
from raylingvo.ops.product import einsum, remat_policy


def block(x, weight, policy, implementation):
    def function(x):
        # One product with an axis of both arrays in its result, one without.
        y = jnp.sin(einsum("gbd,gdf->gbf", x, weight, implementation=implementation))
        return jnp.sin(einsum("gbd,df->gbf", y, weight[0], implementation=implementation)).sum()

    return jax.checkpoint(function, policy=remat_policy(policy))(x)


@pytest.mark.skipif(bool(_native.why_unavailable()), reason=f"no C++ ops: {_native.why_unavailable()}")
@pytest.mark.parametrize(
    "policy, products",
    # Two forward, two backward, and those that are computed again.
    [("dots_saveable", 4), ("dots_with_no_batch_dims_saveable", 5), ("nothing_saveable", 6)],
)
def test_products_of_cpp_are_kept_as_dots_are(policy, products):
    x, weight = jnp.ones((2, 3, 4)), jnp.ones((2, 4, 4))
    for implementation, name in (("cpp", "raylingvo_einsum["), ("xla", "dot_general[")):
        program = jax.make_jaxpr(jax.grad(block), static_argnums=(2, 3))(x, weight, policy, implementation)
        assert str(program).count(name) == products
