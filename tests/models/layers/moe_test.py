"""The mixture of experts' layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled, normal
from flax import nnx

from raylingvo.models.layers.moe import MoeConfig, MoeFeedForward
from raylingvo.models.layers.variables import logical_axes

D = 6
CONFIG = MoeConfig(num_experts=4, hidden_dim=8, capacity_factor=8.0)
call = jax.jit(lambda model, *args: model(*args))


def layer(**changes):
    return filled(lambda: MoeFeedForward(dataclasses.replace(CONFIG, **changes), D, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("gated", [False, True])
def test_each_token_by_itself(gated):
    """With room for all, the layer is two weighted networks per token."""
    model, x = layer(gated=gated), normal(2, 5, D)
    out, _ = call(model, x)
    gates = np.asarray(jax.nn.softmax(x @ model.router[...]))
    for b in range(2):
        for t in range(5):
            best = np.argsort(-gates[b, t])[:2]
            expected = 0
            for e in best:
                hidden = x[b, t] @ model.up[e]
                inner = np.maximum(x[b, t] @ model.gate[e], 0) * hidden if gated else np.maximum(hidden, 0)
                expected = expected + gates[b, t, e] / gates[b, t, best].sum() * (inner @ model.down[e])
            np.testing.assert_allclose(out[b, t], expected, atol=1e-5)


def test_the_order_of_tokens_does_not_matter_below_capacity():
    model, x = layer(), normal(2, 8, D)
    order = np.random.default_rng(0).permutation(8)
    np.testing.assert_allclose(call(model, x[:, order])[0], call(model, x)[0][:, order], atol=1e-5)
    np.testing.assert_allclose(call(layer(num_groups=4), x)[0], call(model, x)[0], atol=1e-5)


def test_a_full_expert_passes_the_rest_by():
    model = layer(capacity_factor=None, min_capacity=1)
    model.router[...] = jnp.zeros((D, 4)).at[:, 0].set(9.0).at[:, 1].set(5.0)
    out, _ = call(model, jnp.abs(normal(1, 8, D)))
    assert np.abs(out[0, 0]).max() > 0 and not np.any(out[0, 1:])


def test_padding_never_leaks():
    model, x = layer(capacity_factor=1.0), normal(2, 8, D)
    nonpadding = jnp.ones((2, 8, 1)).at[:, 2:5].set(0)
    other = jnp.where(jnp.broadcast_to(nonpadding, x.shape) == 1, x, 5.0)
    (out, aux), (other_out, other_aux) = call(model, x, nonpadding), call(model, other, nonpadding)
    np.testing.assert_allclose(out, other_out, atol=1e-6)
    np.testing.assert_allclose(aux, other_aux, rtol=1e-6)
    assert not np.any(out[:, 2:5])


def test_packed_tokens_are_dropped_otherwise_than_padded_ones():
    """Two sentences of 4 in one row of 8, or in two: the same, unless experts have too few places for a whole row."""
    x = normal(2, 4, D)
    padded, nonpadding = jnp.pad(x, ((0, 0), (0, 4), (0, 0))), jnp.ones((2, 8, 1)).at[:, 4:].set(0)
    for model, equal in ((layer(), True), (layer(capacity_factor=None, min_capacity=2), False)):
        packed = call(model, x.reshape(1, 8, D))[0].reshape(2, 4, D)
        assert np.allclose(packed, call(model, padded, nonpadding)[0][:, :4], atol=1e-5) is equal


def test_axes_and_errors():
    assert logical_axes(layer())["up"] == ("expert", "embed", "mlp")
    with pytest.raises(ValueError, match="num_groups must divide the number of tokens 10"):
        layer(num_groups=4)(normal(2, 5, D))
    for change, message in (
        ({"num_experts": 1}, "num_experts must be >= 2"),
        ({"hidden_dim": 0}, "hidden_dim must be > 0"),
        ({"num_groups": 0}, "num_groups must be > 0"),
        ({"capacity_factor": 0.0}, "capacity_factor must be > 0"),
        ({"capacity_factor": None}, "min_capacity must be > 0"),
        ({"second_expert": "x"}, "second_expert must be one of"),
        ({"dropout_rate": 1.0}, "dropout_rate must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(CONFIG, **change)
