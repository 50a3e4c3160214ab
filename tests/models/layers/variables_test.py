"""Variables and the names of their axes."""

import jax.numpy as jnp
import pytest
from flax import nnx

from raylingvo.models.layers.initializers import constant
from raylingvo.models.layers.variables import logical_axes, param


class Layer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.kernel = param(rngs, constant(0.5), (2, 3), ("embed", None))
        self.count = nnx.BatchStat(jnp.zeros(3))


def test_a_variable_is_float32_and_knows_its_axes():
    layer = Layer(nnx.Rngs(0))
    assert layer.kernel.dtype == jnp.float32
    assert (layer.kernel[...] == 0.5).all()
    assert logical_axes(layer) == {"kernel": ("embed", None), "count": (None,)}


def test_stacked_layers_have_an_axis_more():
    stacked = nnx.vmap(Layer)(nnx.Rngs(0).split(4))
    assert logical_axes(stacked) == {"kernel": ("layers", "embed", None), "count": (None, None)}


def test_the_names_are_those_of_abstract_layers_too():
    assert logical_axes(nnx.eval_shape(lambda: Layer(nnx.Rngs(0)))) == logical_axes(Layer(nnx.Rngs(0)))


def test_each_axis_has_a_name_or_none():
    with pytest.raises(ValueError, match=r"a name for each of the 2 axes of the shape \(got \('embed',\)\)"):
        param(nnx.Rngs(0), constant(0.0), (2, 3), ("embed",))
