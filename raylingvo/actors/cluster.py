"""The Ray cluster that a command works in: one that it joins, or one that it starts for itself."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import psutil
import ray
from ray import _raylet
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.utils import read_ray_address
from ray.exceptions import AuthenticationError
from ray.util.client import ray as ray_client

from raylingvo.actors import memory, priorities
from raylingvo.config import FrozenDict
from raylingvo.errors import RequestError

# By these a terminal, `timeout`, a batch system or a shell that ends asks a run to stop.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_CONNECT_SECONDS = 10.0
_compiled: Any = _raylet  # of which type checkers do not know what it has


class Cluster(NamedTuple):
    """What a run has to know of the Ray that this process is connected to."""

    dashboard: str | None  # its address, if that is to be told
    own: bool  # started by this process for itself: Ray's processes have inherited its environment
    may_grow: bool  # what it has now says nothing about what it will have
    address: str | None = None  # host:port, by which others join it; if that is known


@contextlib.contextmanager
def connected(address: str | None, resources: Mapping[str, float] = FrozenDict()) -> Iterator[Cluster]:
    """Ray, as asked for: the cluster at `address`, the one this process is connected to, or one of our own.

    resources: what one of our own has besides what Ray finds.
    """
    if ray.is_initialized():
        yield _connected_already(address)
        return
    # No reports to anybody unless the user has asked for them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # An actor without GPUs keeps its CUDA_VISIBLE_DEVICES (it runs on the CPU anyway); this also silences a warning.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray would run all actors at niceness 15. Training is what the machine is there for; the others step back.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # That a call is repeated because the SnapshotStore died is what a run survives, and says in a line of its own.
    os.environ.setdefault("RAY_enable_output_error_log_if_still_retry", "0")
    own = address in (None, "local")
    # What the Trainer's other hosts say when one has ended it: Ray would print it as soon as nobody asks for it.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    with _quiet():
        if own:
            # "local": never join somebody else's cluster by accident.
            with blocked(STOP_SIGNALS), memory.kept(), _on_loopback():
                dashboard = _init("local", resources=dict(resources))
            priorities.let_ray_step_back()
        else:
            dashboard = _join(str(address))
        try:
            yield Cluster(dashboard, own=own, may_grow=not own, address=_address())
        finally:
            ray.shutdown()


@contextlib.contextmanager
def joined(address: str | None, otherwise: str = "say where it is with --address") -> Iterator[Cluster]:
    """The cluster at `address`; if None, the one this process is connected to, or that `ray start` started here.

    Raises RequestError if there is none; `otherwise` is what else the user can do about that.
    """
    if address is not None or ray.is_initialized():
        with connected(address) as cluster:
            yield cluster
        return
    # Not "auto": Ray would also find what processes, such as other runs, have started for themselves alone.
    started = os.environ.get("RAY_ADDRESS") or read_ray_address()
    if not started or ("RAY_ADDRESS" not in os.environ and _silence(started)):  # what was killed is still recorded
        raise RequestError(
            f"there is no Ray cluster on this machine; start one with `ray start --head`, or {otherwise}"
        )
    with connected(started) as cluster:
        yield cluster._replace(may_grow=False)


def rejoined(address: str) -> contextlib.AbstractContextManager[Cluster]:
    """The Ray that another process of this user has started on this machine for itself alone.

    address: host:port, as that process knows it, from where nobody else can have put it: Ray's token is shown to it.
    Raises RequestError at once if the address is not one of this machine; on entering, if there is no Ray.
    """
    if not _is_of_this_machine(address):
        raise RequestError(f"{address!r} is no address of this machine: Ray's token is not shown to it")
    return _rejoined(address)


def _is_of_this_machine(address: str) -> bool:
    """By numbers alone: what a name stands for others may say."""
    host, _, port = address.rpartition(":")
    try:
        ip = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    known = {known.address for addresses in psutil.net_if_addrs().values() for known in addresses}
    return port.isdecimal() and (ip.is_loopback or str(ip) in known)


@contextlib.contextmanager
def _rejoined(address: str) -> Iterator[Cluster]:
    show_token()
    with contextlib.ExitStack() as opened:
        if address.startswith("127."):
            opened.enter_context(_on_loopback())  # Ray would look for it at the machine's address
        yield opened.enter_context(connected(address))


def show_token() -> None:
    """Lets Ray show its token to whom this process connects to, if there is one, and the user has not said otherwise.

    Ray itself does so only for what it has started, or found.
    """
    if "RAY_AUTH_MODE" not in os.environ and has_token():
        os.environ["RAY_AUTH_MODE"] = "token"
        _compiled.Config.initialize("")  # Ray has read it already


def has_token() -> bool:
    return _compiled.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)


def object_store_bytes() -> int:
    """How much the object store of any machine of the connected cluster holds, at least."""
    return int(min(node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]))


@contextlib.contextmanager
def blocked(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Blocks signals for this thread and, for ever, for the processes and threads it starts meanwhile.

    A terminal, `timeout` and batch systems signal the whole process group. Ray's processes are to outlive that: they
    end when this one has written its checkpoint, or by the kernel when it dies. (Ray does so for SIGINT only.)
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Keeps the servers of a Ray that is started meanwhile on 127.0.0.1, unless the environment asks for a cluster.

    Ray (2.60) replaces `_node_ip_address="127.0.0.1"` by the machine's address and then listens on all interfaces.
    This is the switch by which it stays on loopback on macOS and Windows. Its variable is read when Ray is imported.
    """
    if "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" in os.environ:
        yield
        return
    allowed, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = allowed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lets Ray log what it would print.

    Ray (2.60) prints a paragraph for each process that dies, to stdout, which may have to be one JSON object. What
    became of the process the run says itself.
    """

    def log(data: Mapping[str, Any], **_: Any) -> None:
        for line in data["lines"]:
            logging.getLogger(__name__).info("%s", line)

    printing, ray_worker.print_to_stdstream = ray_worker.print_to_stdstream, log
    try:
        yield
    finally:
        ray_worker.print_to_stdstream = printing


def _init(address: str, **options: Any) -> str | None:
    """Connects; the address of the dashboard."""
    return ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options).dashboard_url


def _address() -> str | None:
    if ray_client.is_connected():
        return None  # of `ray://`, which is not by what a machine of the cluster joins it
    return ray.get_runtime_context().gcs_address


def _join(address: str) -> str | None:
    if silence := _silence(address):
        raise RequestError(f"--address {address}: no Ray cluster there ({silence})")
    # Ray shows its token only to a cluster that it has found by itself.
    found = "RAY_ADDRESS" not in os.environ and address == read_ray_address()
    try:
        dashboard = _init("auto" if found else address)
    except (ConnectionError, RuntimeError, ValueError, AuthenticationError) as error:
        wants_token = isinstance(error, ConnectionError) and not os.environ.get("RAY_AUTH_MODE")
        hint = " (it may want Ray's token: set RAY_AUTH_MODE=token)" if wants_token else ""
        raise RequestError(f"--address {address}: {str(error).strip().splitlines()[0]}{hint}") from error
    if found and ray.get_runtime_context().gcs_address != address:
        ray.shutdown()
        raise RequestError(f"--address {address}: the cluster there has ended; start one with `ray start --head`")
    return dashboard


def _silence(address: str) -> Exception | None:
    """Why host:port cannot be reached; Ray would try for ten minutes and more."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return None  # "auto", or a form that Ray knows, or has something to say about
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        return error
    return None


def _connected_already(address: str | None) -> Cluster:
    if address is not None:
        raise RequestError(f"--address {address}: this process is connected to a Ray cluster already")
    # Whoever initialised it has been told the dashboard's address.
    return Cluster(None, own=False, may_grow=False, address=_address())
