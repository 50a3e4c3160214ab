"""Where states and batches lie on eight devices: variables as the rules say, all that belongs to them as they do."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
import transformer_toy

from raylingvo.data.batches import WHOLE
from raylingvo.errors import RequestError
from raylingvo.experiment import Experiment
from raylingvo.parallel.layout import OneDevice, Spread, make_layout
from raylingvo.parallel.mesh import Mesh
from raylingvo.training.host_copy import encode
from raylingvo.training.learner import Learner
from raylingvo.training.optimizers import Adafactor, Adam, Optimizer
from raylingvo.training.paths import names
from raylingvo.training.state import Model, TrainState, init_state, variable_lines

TWO_BY_FOUR = Mesh(axes={"data": 2, "model": 4}, rules={"mlp": "model", "vocab": "model", "layers": "data"})
FSDP = dataclasses.replace(TWO_BY_FOUR, fsdp="data")


def toy_with(optimizer: Optimizer) -> Experiment:
    learner = Learner(learning_rate=0.05, optimizer=optimizer)
    return toy.experiment(task=toy.Regression(width=16, dtype="bfloat16"), learner=learner, ema_decay=0.9)


TOY = toy_with(Adam())


def split(mesh: Mesh, shape: tuple[int, ...], *axes: str | None) -> tuple[Any, ...]:
    """Along what a variable of these logical axes is split, without the axes after the last that is."""
    known = {"x": axes, "all": tuple(mesh.rules)}
    sharding = Spread(mesh, known).shardings({"x": jax.ShapeDtypeStruct(shape, jnp.float32)})["x"]
    return parts(sharding)


def parts(sharding: Any) -> tuple[Any, ...]:
    spec = list(sharding.spec)
    while spec and spec[-1] is None:
        spec.pop()
    return tuple(spec)


def spread_state(experiment: Experiment, mesh: Mesh, batch: Any) -> tuple[Spread, TrainState]:
    layout = Spread(mesh, Model(experiment.task).logical_axes)
    return layout, init_state(experiment, batch, layout=layout)


@pytest.mark.parametrize(
    ("axes", "shape", "wanted"),
    [
        (("embed", "mlp"), (6, 8), (None, "model")),
        (("vocab", "embed"), (8, 8), ("model",)),
        (("layers", "embed", "mlp"), (2, 4, 8), ("data", None, "model")),
        (("mlp", "vocab"), (8, 8), ("model",)),  # a mesh axis splits one of them, the first
        (("mlp", "vocab"), (6, 8), (None, "model")),  # or the first that it can
        (("embed", "mlp"), (8, 6), ()),
        (("mlp",), (1,), ()),
        (("embed", None), (8, 8), ()),
    ],
)
def test_rules_split_the_axes_that_they_name_where_that_is_even(
    axes: tuple[str | None, ...], shape: tuple[int, ...], wanted: tuple[Any, ...]
) -> None:
    assert split(TWO_BY_FOUR, shape, *axes) == wanted


@pytest.mark.parametrize(
    ("axes", "shape", "wanted"),
    [
        ((None, None), (4, 6), (None, "data")),
        ((None, None), (6, 4), ("data",)),
        ((None, None), (4, 4), ("data",)),
        ((None, None), (4, 7), ("data",)),  # the largest of those that it can
        ((None, None, None), (2, 8, 6), (None, "data")),
        (("embed", "mlp"), (64, 8), (None, "model")),  # every *other* variable
        (("embed", "mlp"), (64, 6), ("data",)),
        ((None, None), (3, 7), ()),
        ((None,), (1,), ()),
        ((None, None), (0, 7), ()),
        ((None, None), (0, 4), (None, "data")),
        ((), (), ()),
    ],
)
def test_fsdp_splits_the_largest_axis_of_what_no_rule_splits(
    axes: tuple[str | None, ...], shape: tuple[int, ...], wanted: tuple[Any, ...]
) -> None:
    assert split(FSDP, shape, *axes) == wanted


def test_a_leaf_lies_as_the_variable_whose_path_is_in_its_own() -> None:
    mesh = Mesh(axes={"data": 2, "model": 4}, rules={"mlp": "model"})
    layout = Spread(mesh, {"kernel": (None, None), "out/kernel": ("mlp", None), "b": ("mlp",)})
    tree = {
        "mu": {"out": {"kernel": np.zeros((8, 8))}, "xout": {"kernel": np.zeros((8, 8))}, "b": {"v": np.zeros(8)}},
        "out": {"kernel": np.zeros(8)},  # of another rank
        "ab": np.zeros(8),
        "count": np.zeros(()),
    }
    assert jax.tree.map(parts, layout.shardings(tree)) == {
        "mu": {"out": {"kernel": ("model",)}, "xout": {"kernel": ()}, "b": {"v": ("model",)}},
        "out": {"kernel": ()},
        "ab": (),
        "count": (),
    }


@pytest.mark.parametrize("optimizer", [Adam(), Adafactor(beta1=0.9, min_dim_size_to_factor=8)])
@pytest.mark.parametrize("kind", ["toy", "transformer"])
def test_slots_and_averages_lie_like_their_variables(kind: str, optimizer: Optimizer) -> None:
    if kind == "toy":
        experiment, mesh, batch = toy_with(optimizer), Mesh(fsdp="data"), toy.batches(1)[0]
    else:
        experiment = transformer_toy.experiment(optimizer, ema_decay=0.9)
        mesh, batch = transformer_toy.MESH, transformer_toy.batches(1)[0]
    abstract = jax.eval_shape(lambda: init_state(experiment, batch))
    shardings = Spread(mesh, Model(experiment.task).logical_axes).shardings(abstract)
    shapes = dict(item for tree in abstract.weights for item in names(tree))
    variables = {path: parts(sharding) for tree in shardings.weights for path, sharding in names(tree)}
    assert any(variables.values())
    of_variables: dict[str, int] = dict.fromkeys(variables, 0)
    shaped = jax.tree.leaves_with_path((abstract.opt_state, abstract.average))
    for (path, x), sharding in zip(shaped, jax.tree.leaves((shardings.opt_state, shardings.average)), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        variable = max((known for known in variables if f"/{known}/" in f"{name}/"), key=len, default="")
        if variable and x.shape == shapes[variable].shape:
            assert parts(sharding) == variables[variable], name
            of_variables[variable] += 1
        else:  # counts; and means of a variable over one of its axes
            assert parts(sharding) == (), name
    assert all(of_variables.values())
    assert max(of_variables.values()) == 3  # two slots, and the average


def test_the_transformer_is_split_as_its_rules_say() -> None:
    task = transformer_toy.experiment(Adam()).task
    model = Model(task)
    shardings = Spread(transformer_toy.MESH, model.logical_axes).shardings(model.abstract)
    found = {path: parts(sharding) for path, sharding in names(shardings.params)}
    for path, x in names(model.abstract.params):
        axes = model.logical_axes[path]
        by_rule = [
            axis in transformer_toy.MESH.rules and size % 4 == 0 for axis, size in zip(axes, x.shape, strict=True)
        ]
        if any(by_rule):
            assert found[path] == (*[None] * by_rule.index(True), "model"), path
        else:
            assert "data" in found[path], path  # all are of even sizes
    assert {axis for axes in model.logical_axes.values() for axis in axes} >= {"heads", "mlp", "vocab"}


def test_numbers_that_are_no_variables_are_whole() -> None:
    _, state = spread_state(TOY, Mesh(fsdp="data"), toy.batches(1)[0])
    rest = state._replace(weights=None, opt_state=None, average=())
    assert all(x.is_fully_replicated and len(x.sharding.device_set) == 8 for x in jax.tree.leaves(rest))


def test_the_initial_state_is_that_of_one_device() -> None:
    (batch,) = toy.batches(1)
    layout, state = spread_state(TOY, Mesh(fsdp="data"), batch)
    toy.assert_bit_equal(state, init_state(TOY, batch))
    assert jax.tree.map(lambda x: x.sharding, state) == layout.shardings(state)


def test_variable_lines_say_what_is_split() -> None:
    _, state = spread_state(TOY, Mesh(fsdp="data"), toy.batches(1)[0])
    lines = [" ".join(line.split()) for line in variable_lines(state.weights, {})]
    assert lines[:3] == [
        "hidden/bias (16,) bfloat16 16 split along data",
        "hidden/kernel (4, 16) bfloat16 64 split along None, data",
        "out/bias (1,) float32 1",
    ]


def test_put_state_gives_the_bits_and_lies_as_the_state_does() -> None:
    layout, state = spread_state(TOY, Mesh(fsdp="data"), toy.batches(1)[0])
    expected = jax.tree.map(np.array, state)
    assert expected.weights.params["hidden"]["kernel"].dtype == jnp.bfloat16
    arrays = [x.copy() for x in encode(jax.tree.leaves(expected))]
    put = layout.put_state(lambda i, index: arrays[i][index], jax.eval_shape(lambda: state))
    for x in arrays:
        x[...] = 0  # the buffers of a snapshot are used again
    toy.assert_bit_equal(put, expected)
    assert jax.tree.map(lambda x: x.sharding, put) == jax.tree.map(lambda x: x.sharding, state)


def test_put_state_reads_no_more_than_what_the_devices_hold() -> None:
    layout = Spread(FSDP, {"x": ("embed", "mlp"), "y": ("vocab", "layers")})
    abstract = {"x": jax.ShapeDtypeStruct((6, 8), jnp.float32), "y": jax.ShapeDtypeStruct((3, 3), jnp.float32)}
    read = []

    def part(i: int, index: tuple[slice, ...]) -> np.ndarray:
        read.append((i, np.zeros(list(abstract.values())[i].shape)[index].shape))
        return np.zeros(read[-1][1], np.float32)

    layout.put_state(part, abstract)
    assert {*read} == {(0, (6, 2)), (1, (3, 3))}


def test_put_gives_every_device_all() -> None:
    layout = Spread(Mesh(), {})
    tree = {"count": np.zeros((), np.int32), "x": toy.aligned(np.arange(4096).astype(jnp.bfloat16))}
    put = layout.put(tree)
    expected = jax.tree.map(np.array, tree)
    tree["x"][:] = 0
    toy.assert_bit_equal(put, expected)
    assert all(x.sharding == layout.everywhere for x in put.values())


@pytest.mark.parametrize(
    ("mesh", "rows"),
    [
        (Mesh(), 1),
        (Mesh(axes={"data": 2, "model": 4}), 4),
        (Mesh(axes={"data": 2, "model": 4}, batch=("data", "model")), 1),
        (Mesh(axes={"model": 4, "data": 2}), 4),
        (Mesh(axes={"data": 8}, batch=()), 8),
    ],
)
def test_rows_of_a_batch_are_split_along_the_axes_of_batch(mesh: Mesh, rows: int) -> None:
    layout = Spread(mesh, {})
    assert layout.shard == WHOLE  # one host reads all of it
    batch = toy.batches(1)[0]
    there = layout.batch({**batch, "text": np.array(["a"] * 8)})
    assert there.keys() == batch.keys()  # no device can hold a text
    for name, x in there.items():
        np.testing.assert_array_equal(x, batch[name])
        assert {shard.data.shape[0] for shard in x.addressable_shards} == {rows}, name
    abstract = layout.abstract_batch(batch)
    for name, x in there.items():
        assert (x.shape, x.dtype, x.sharding) == (abstract[name].shape, abstract[name].dtype, abstract[name].sharding)


@pytest.mark.parametrize("batch", [("data",), ("data", "model")])
def test_a_batch_that_cannot_be_split_evenly_is_refused(batch: tuple[str, ...]) -> None:
    layout = Spread(Mesh(axes={"data": 4, "model": 2}, batch=batch), {})
    with pytest.raises(RequestError) as raised:
        layout.abstract_batch(toy.batches(1, batch_size=6)[0])
    assert str(raised.value) == (
        f"a batch of 6 rows cannot be split evenly over {4 * len(batch)} devices "
        f"(resources.mesh.batch: {', '.join(batch)})"
    )


def test_a_mesh_that_does_not_come_to_the_devices_is_refused() -> None:
    for axes in ({"data": 4}, {"data": -1, "model": 3}):
        with pytest.raises(RequestError) as raised:
            make_layout(Mesh(axes=axes), dict)
        assert str(raised.value) == f"resources.mesh: axes {axes} do not come to 8 devices"


def test_a_rule_for_what_the_model_does_not_have_is_refused() -> None:
    mesh = Mesh(rules={"mpl": "data"})
    with pytest.raises(RequestError) as raised:
        make_layout(mesh, lambda: {"x": ("mlp", None), "y": ("embed",)})
    message = "resources.mesh.rules: the model has no logical axis 'mpl'; its variables have embed, mlp"
    assert str(raised.value) == message
    with pytest.raises(RequestError, match=r"no logical axis 'mpl'; its variables name none$"):
        make_layout(mesh, lambda: {"x": (None, None)})


def test_several_devices_are_used_whatever_the_mesh() -> None:
    layout = make_layout(Mesh(), dict)
    assert isinstance(layout, Spread)
    assert (layout.spread, layout.num_devices) == (True, 8)
    assert (OneDevice.spread, OneDevice.num_devices) == (False, 1)
