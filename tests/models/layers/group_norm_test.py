"""GroupNorm: Lingvo's values, padding and the cumulative form."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from layer_gradients import assert_grad, assert_output, outputs_and_grads

from raylingvo.models.layers.group_norm import GroupNorm

X = jnp.asarray(np.random.default_rng(0).normal(2.0, 3.0, size=(2, 4, 3, 6)), jnp.float32)
PADDINGS = jnp.asarray(np.arange(4) >= np.array([[4], [2]]), jnp.float32)
NAMES = {"scale": "gamma", "bias": "beta"}


def test_group_norm_is_lingvos(lingvo_vectors):
    cases = [case for case in lingvo_vectors("i_layers") if case[0]["layer"] == "GroupNormLayer"]
    assert cases
    for case, arrays in cases:
        params = {name: value for name, value in case["params"].items() if name != "input_rank"}
        layer = GroupNorm(arrays["in_x"].shape[-1], rngs=nnx.Rngs(0), **params)
        for ours, theirs in NAMES.items():
            getattr(layer, ours)[...] = jnp.asarray(arrays[f"w_{theirs}"]).reshape(-1)
        definition, params = nnx.split(layer)
        paddings = jnp.asarray(arrays["in_paddings"]) if "in_paddings" in arrays else None
        y, _, (grads, x) = outputs_and_grads(
            lambda params, x, definition=definition, paddings=paddings: (
                nnx.merge(definition, params)(x, paddings),
                None,
            ),
            (params, jnp.asarray(arrays["in_x"])),
            jnp.asarray(arrays["fix_y"]),
        )
        assert_output(y, arrays["out_y"], case["id"])
        assert_grad(x, arrays["gin_x"], case["id"])
        for name, grad in grads.items():
            assert_grad(grad[...], arrays[f"gw_{NAMES[name]}"], case["id"])


def groups_of(x):
    return np.asarray(x).reshape(*x.shape[:-1], 2, 3)


def test_each_group_of_each_example_is_normal():
    layer = GroupNorm(6, num_groups=2, rngs=nnx.Rngs(0))
    y = groups_of(layer(X))
    np.testing.assert_allclose(y.mean((1, 2, 4)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((1, 2, 4)), 1, atol=1e-3)
    short = groups_of(layer(X, PADDINGS))[1, :2]
    np.testing.assert_allclose(short.mean((0, 1, 3)), 0, atol=1e-5)


@pytest.mark.parametrize("cumulative", [False, True])
def test_padding_never_leaks(cumulative):
    layer = GroupNorm(6, num_groups=2, cumulative=cumulative, rngs=nnx.Rngs(0))
    padded = PADDINGS[:, :, None, None] > 0
    y, z = layer(X, PADDINGS), layer(jnp.where(padded, 1e3, X), PADDINGS)
    np.testing.assert_array_equal(jnp.where(padded, 0, y), jnp.where(padded, 0, z))


def test_the_cumulative_form_does_not_see_the_future():
    layer = GroupNorm(6, num_groups=2, cumulative=True, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer(X)[:, :2], layer(X[:, :2]), atol=1e-5)
    first = groups_of(layer(X))[:, 0]
    np.testing.assert_allclose(first.mean((1, 3)), 0, atol=1e-5)


def test_there_are_no_more_groups_than_channels_and_none_is_too_small():
    assert GroupNorm(6, rngs=nnx.Rngs(0)).group_size == 1
    assert GroupNorm(6, min_group_size=3, rngs=nnx.Rngs(0)).group_size == 3
    with pytest.raises(ValueError, match=r"features must be divisible by the size of a group, 3 \(got 7\)"):
        GroupNorm(7, num_groups=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"num_groups and min_group_size must be >= 1 \(got 0 and 1\)"):
        GroupNorm(6, num_groups=0, rngs=nnx.Rngs(0))
