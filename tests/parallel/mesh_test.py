"""A mesh as configuration: what fits together, how many devices it comes to, and how it is written down."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import toy

from raylingvo.config import dump, load, override, params_text
from raylingvo.errors import RequestError
from raylingvo.experiment import Experiment, Resources
from raylingvo.parallel.mesh import Mesh


def with_mesh(mesh: Mesh) -> Experiment:
    return dataclasses.replace(toy.experiment(), resources=Resources(mesh=mesh))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"axes": {}}, "axes must have at least one (got none)"),
        ({"axes": {"data": 0}}, "axes: data must be >= 1, or -1 for what is left (got 0)"),
        ({"axes": {"data": 2, "model": -2}}, "axes: model must be >= 1, or -1 for what is left (got -2)"),
        (
            {"axes": {"data": -1, "model": -1}},
            "axes: only one of them may be -1 (got {'data': -1, 'model': -1})",
        ),
        ({"axes": {"rows": -1}}, "batch: there is no mesh axis 'data'; axes has rows"),
        ({"batch": ("data", "model")}, "batch: there is no mesh axis 'model'; axes has data"),
        (
            {"axes": {"data": 2, "model": 4}, "rules": {"mlp": "model", "heads": "modle"}},
            "rules.heads: there is no mesh axis 'modle'; axes has data, model",
        ),
        ({"fsdp": "model"}, "fsdp: there is no mesh axis 'model'; axes has data"),
        ({"batch": ("data", "data")}, "batch must not name an axis twice (got ('data', 'data'))"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        Mesh(**fields)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("axes", "num_devices", "shape"),
    [
        ({"data": -1}, 1, (1,)),
        ({"data": -1}, 6, (6,)),
        ({"data": -1, "model": 2}, 6, (3, 2)),
        ({"data": 2, "model": -1}, 6, (2, 3)),
        ({"data": 2, "model": -1}, 2, (2, 1)),
        ({"data": 4}, 4, (4,)),
        ({"data": 2, "model": 1, "expert": 3}, 6, (2, 1, 3)),
    ],
)
def test_what_is_left_goes_to_the_axis_of_size_minus_one(
    axes: dict[str, int], num_devices: int, shape: tuple[int, ...]
) -> None:
    assert Mesh(axes={"data": -1} | axes).shape(num_devices) == shape


@pytest.mark.parametrize(
    ("axes", "num_devices"),
    [
        ({"data": 2}, 1),  # too few
        ({"data": 2}, 4),  # they would be enough twice
        ({"data": 2}, 3),
        ({"data": 2, "model": -1}, 1),
        ({"data": -1, "model": 4}, 6),
        ({"data": -1}, 0),
    ],
)
def test_axes_that_do_not_come_to_the_devices_are_refused(axes: dict[str, int], num_devices: int) -> None:
    with pytest.raises(ValueError) as raised:
        Mesh(axes=axes).shape(num_devices)
    assert str(raised.value) == f"axes {axes} do not come to {num_devices} devices"


@pytest.mark.parametrize(
    ("overrides", "mesh"),
    [
        ({"axes": "{data: 2, model: -1}"}, Mesh(axes={"data": 2, "model": -1})),
        ({"axes.model": "2"}, Mesh(axes={"data": -1, "model": 2})),
        (
            {"axes": "{replica: 2, data: 4}", "batch": "[replica, data]", "fsdp": "data"},
            Mesh(axes={"replica": 2, "data": 4}, batch=("replica", "data"), fsdp="data"),
        ),
        (
            # In whatever order: the rule needs the axis.
            {"rules.mlp": "model", "axes.model": "4", "batch": "[]"},
            Mesh(axes={"data": -1, "model": 4}, batch=(), rules={"mlp": "model"}),
        ),
    ],
)
def test_it_is_set_from_the_command_line(overrides: Mapping[str, str], mesh: Mesh) -> None:
    given = {f"resources.mesh.{key}": value for key, value in overrides.items()}
    assert override(toy.experiment(), given) == with_mesh(mesh)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("axes.data", "0", "resources.mesh.axes: data must be >= 1, or -1 for what is left (got 0)"),
        ("axes.data", "half", "resources.mesh.axes.data: expected an int (got 'half')"),
        ("axes", "{}", "resources.mesh.axes must have at least one (got none)"),
        ("rules.mlp", "model", "resources.mesh.rules.mlp: there is no mesh axis 'model'; axes has data"),
        ("fsdp", "model", "resources.mesh.fsdp: there is no mesh axis 'model'; axes has data"),
    ],
)
def test_what_does_not_fit_is_named_by_its_key(key: str, value: str, message: str) -> None:
    with pytest.raises(RequestError) as raised:
        override(toy.experiment(), {f"resources.mesh.{key}": value})
    assert str(raised.value) == message


def test_it_is_loaded_as_it_was_dumped_and_the_order_of_its_axes_counts() -> None:
    mesh = Mesh(axes={"model": 2, "data": -1}, rules={"vocab": "model", "heads": "model"}, fsdp="data")
    experiment = with_mesh(mesh)
    text = dump(experiment)
    again = load(text, Experiment)
    assert again == experiment
    assert dump(again) == text
    assert again.resources.mesh.shape(6) == (2, 3)
    assert load(dump(with_mesh(Mesh(axes={"data": -1, "model": 2}))), Experiment).resources.mesh.shape(6) == (3, 2)
    assert "resources.mesh.axes.model : 2\n" in params_text(experiment)


def test_a_mesh_does_not_change_with_what_it_was_made_of() -> None:
    axes = {"data": 2}
    mesh = Mesh(axes=axes)
    axes["data"] = 4
    assert mesh.shape(2) == (2,)
    assert hash(mesh) == hash(Mesh(axes={"data": 2}))
