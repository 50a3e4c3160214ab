"""The layout where there is one device: everything is where JAX puts it. Of several: tests/eight_devices/layout.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from raylingvo.data.batches import WHOLE
from raylingvo.errors import RequestError
from raylingvo.parallel.layout import ONE_DEVICE, make_layout
from raylingvo.parallel.mesh import Mesh
from raylingvo.training.host_copy import encode


def test_one_device_has_nothing_to_spread_over() -> None:
    def not_asked() -> dict[str, tuple[str, ...]]:
        raise AssertionError("building the model takes time")

    layout = make_layout(Mesh(), not_asked)
    assert layout is ONE_DEVICE
    assert (layout.spread, layout.num_devices, layout.shard) == (False, 1, WHOLE)


def test_a_mesh_for_more_serves_one_too_but_its_rules_are_checked() -> None:
    mesh = Mesh(axes={"data": 1, "model": -1}, rules={"mlp": "model"}, fsdp="data")
    assert make_layout(mesh, lambda: {"x": (None, "mlp")}) is ONE_DEVICE
    with pytest.raises(RequestError) as raised:
        make_layout(mesh, lambda: {"x": (None, "embed")})
    message = "resources.mesh.rules: the model has no logical axis 'mlp'; its variables have embed"
    assert str(raised.value) == message


def test_a_mesh_that_needs_more_is_refused() -> None:
    with pytest.raises(RequestError) as raised:
        make_layout(Mesh(axes={"data": 2, "model": -1}), dict)
    assert str(raised.value) == "resources.mesh: axes {'data': 2, 'model': -1} do not come to 1 devices"


def test_a_batch_is_what_the_step_takes() -> None:
    (batch,) = toy.batches(1)
    assert ONE_DEVICE.batch(batch) is batch
    assert ONE_DEVICE.abstract_batch(batch) is batch
    assert ONE_DEVICE.shardings(batch) is None


def test_what_is_put_has_the_bits_in_memory_of_its_own() -> None:
    tree = {
        "count": np.array(3, np.int32),
        "x": toy.aligned(np.arange(4096).astype(jnp.bfloat16)),
        "none": np.zeros((0, 3), np.float32),
    }
    expected, arrays = jax.tree.map(np.copy, tree), encode(jax.tree.leaves(tree))
    assert "uint16" in {str(x.dtype) for x in arrays}
    put = ONE_DEVICE.put(tree), ONE_DEVICE.put_state(lambda i, index: arrays[i][index], tree)
    for x in arrays:
        x[...] = 1  # the buffers of a snapshot are used again
    for given in put:
        toy.assert_bit_equal(given, expected)
