"""How drivers are found, without Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from raylingvo.actors import detached
from raylingvo.errors import RequestError

ORDER: Any = SimpleNamespace(run="LeNet5-1", logdir="/runs/a")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that drivers have."""
    names: list[str] = []

    def start_driver(order: Any) -> str:
        if order.run in names:
            raise ValueError(f"The name {order.run} (namespace=raylingvo) is already taken.")
        return f"driver of {order.run}"

    monkeypatch.setattr(detached, "start_driver", start_driver)
    monkeypatch.setattr(detached, "driver_ids", lambda: sorted(names))
    monkeypatch.setattr(detached, "fetch", lambda call: call())
    return names


def _named(monkeypatch: pytest.MonkeyPatch, farewell: Any) -> None:
    driver = SimpleNamespace(farewell=SimpleNamespace(remote=lambda: farewell))
    monkeypatch.setattr(detached, "_get", lambda _: driver)


def test_a_driver_that_is_about_to_end_is_waited_for(monkeypatch: pytest.MonkeyPatch, taken: list[str]) -> None:
    taken.append("LeNet5-1")

    def farewell() -> None:
        taken.clear()
        raise RayActorError

    _named(monkeypatch, farewell)
    assert detached._new_driver(ORDER) == "driver of LeNet5-1"


def test_a_driver_that_goes_on_is_not_doubled(monkeypatch: pytest.MonkeyPatch, taken: list[str]) -> None:
    taken.append("LeNet5-1")
    _named(monkeypatch, lambda: None)
    with pytest.raises(RequestError, match=r"^--logdir /runs/a: another raylingvo process is running in it$"):
        detached._new_driver(ORDER)


def test_what_else_ray_says_is_not_taken_for_a_second_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def start_driver(_: Any) -> None:
        raise ValueError("bad options")

    monkeypatch.setattr(detached, "start_driver", start_driver)
    with pytest.raises(ValueError, match="bad options"):
        detached._new_driver(ORDER)


@pytest.mark.parametrize(
    ("names", "name", "message"),
    [
        ([], "x", "no run 'x': there are no runs in this cluster; of one that is over, give the logdir"),
        (["LeNet5-1", "LeNet5-2"], "LeNet", "RUN 'LeNet' may be LeNet5-1 or LeNet5-2"),
        (["LeNet5-1", "Other-1"], "LeNt5", "no run 'LeNt5'; closest: LeNet5-1"),
        (["LeNet5-1"], "xyz", "no run 'xyz'; `raylingvo status` shows those in this cluster"),
    ],
)
def test_a_name_that_is_none_is_refused_with_those_that_are(
    taken: list[str], names: list[str], name: str, message: str
) -> None:
    taken.extend(names)
    with pytest.raises(RequestError) as refused:
        detached._find(name)
    assert str(refused.value) == message


def test_a_whole_name_is_not_ambiguous(monkeypatch: pytest.MonkeyPatch, taken: list[str]) -> None:
    taken.extend(["LeNet5-1", "LeNet5-11"])
    monkeypatch.setattr(detached, "_get", lambda run: f"driver of {run}")
    assert detached._find("LeNet5-1") == "driver of LeNet5-1"
