"""Which Ray a command joins, and what it says if there is none; nothing is started here."""

from __future__ import annotations

import socket
import types
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from command_line import command_of

from raylingvo.actors import cluster
from raylingvo.errors import RequestError

DIGITS = "image.digits.LeNet5"


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which `ray start` would record its address; it is not there yet."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


@pytest.fixture
def listening() -> Iterator[str]:
    """An address where something listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def silent() -> str:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, listening: str) -> list[str]:
    """The addresses that Ray is asked to join; it always joins the one that listens."""
    addresses: list[str] = []
    monkeypatch.setattr(cluster, "_init", lambda address: addresses.append(address))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: types.SimpleNamespace(gcs_address=listening))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return addresses


@pytest.mark.parametrize(
    ("arguments", "otherwise"),
    [
        (("run", DIGITS, "--logdir", "new", "--detach"), "leave out --detach"),
        (("status",), "say where it is with --address"),
        (("attach", "LeNet5-1"), "say where it is with --address"),
        (("stop", "LeNet5-1"), "say where it is with --address"),
    ],
)
def test_without_a_cluster_a_command_says_how_to_get_one(
    recorded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    otherwise: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    message = f"there is no Ray cluster on this machine; start one with `ray start --head`, or {otherwise}"
    assert command_of(monkeypatch, capsys, *arguments)() == (2, "", f"raylingvo: {message}\n")


def test_an_address_where_nothing_listens_is_refused_at_once(recorded: Path, silent: str) -> None:
    with pytest.raises(RequestError, match=rf"^--address {silent}: no Ray cluster there"), cluster.connected(silent):
        pytest.fail("connected")
    recorded.write_text(silent)  # that of a cluster which was killed
    with pytest.raises(RequestError, match=r"^there is no Ray cluster on this machine"), cluster.joined(None):
        pytest.fail("joined")


def test_the_cluster_of_this_machine_is_found_as_ray_does_so_that_it_gets_the_token(
    recorded: Path, listening: str, asked: list[str]
) -> None:
    recorded.write_text(listening)
    with cluster.joined(None) as joined:
        assert not joined.own
        assert not joined.may_grow
    with cluster.connected(listening) as joined:
        assert joined.may_grow
    assert asked == ["auto", "auto"]


def test_another_address_is_given_to_ray_as_it_is(
    recorded: Path, listening: str, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded.write_text("192.0.2.1:6379")
    monkeypatch.setenv("RAY_ADDRESS", listening)
    with cluster.joined(None), cluster.connected(listening):
        assert asked == [listening, listening]


def test_a_cluster_that_was_found_instead_is_not_worked_in(
    recorded: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        recorded.write_text(address)
        with pytest.raises(RequestError, match=rf"^--address {address}: the cluster there has ended"):
            cluster.joined(None).__enter__()


def test_a_cluster_that_refuses_may_want_a_token(
    recorded: Path, listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(address: str) -> None:
        raise ConnectionError(f"Failed to connect to Ray cluster at {address}\nand more")

    monkeypatch.setattr(cluster, "_init", refuse)
    said = f"--address {listening}: Failed to connect to Ray cluster at {listening}"
    for mode, hint in (("", " (it may want Ray's token: set RAY_AUTH_MODE=token)"), ("token", "")):
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        with pytest.raises(RequestError) as refused:
            cluster.connected(listening).__enter__()
        assert str(refused.value) == said + hint


@pytest.mark.parametrize("address", ["127.0.0.1:9", "[::1]:9", "203.0.113.7:9"])
def test_a_ray_of_this_machine_is_shown_the_token(
    recorded: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"eth0": [types.SimpleNamespace(address="203.0.113.7")]})
    monkeypatch.setattr(cluster, "show_token", lambda: asked.append("token"))
    monkeypatch.setattr(cluster, "_silence", lambda _: None)
    with cluster.rejoined(address):
        assert asked == ["token", address]


@pytest.mark.parametrize(
    "address",
    [
        "203.0.113.7:9",
        "localhost:9",  # a name, of which others may say what it stands for
        "127.0.0.1.example.org:9",
        "127.0.0.1@example.org:9",
        "ray://127.0.0.1:9",
        "0.0.0.0:9",
        "127.0.0.1:",
        "127.0.0.1",
        "auto",
        "",
    ],
)
def test_no_other_is_shown_the_token(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(cluster, "show_token", lambda: pytest.fail("shown"))
    with pytest.raises(RequestError, match=r"is no address of this machine: Ray's token is not shown to it$"):
        cluster.rejoined(address).__enter__()
