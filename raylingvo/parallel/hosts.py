"""Several hosts as one program: how they find each other, and how they come to say the same."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import socket
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from raylingvo.errors import HostsApart


@dataclasses.dataclass(frozen=True, kw_only=True)
class Host:
    """One of the processes that compute together. The addresses are needed if there are several."""

    index: int = 0
    count: int = 1
    address: str = ""  # IP address at which the others find this one
    coordinator: str = ""  # IP address and port of host 0

    @property
    def leads(self) -> bool:
        """Whether it is this one that decides, and writes what is to be written once."""
        return self.index == 0


ALONE = Host()

# How long a host waits for the others to start, and until one that says nothing counts as dead (seconds). That a
# process has died its peers, and Ray, know at once.
_START_SECONDS = 600
_SILENCE_SECONDS = 100
# How long one waits for what only another has to do, such as writing or handing over weights that all hold. JAX ends
# the processes after that.
WORK_SECONDS = 4 * 3600


def join(host: Host, cpu_devices: int) -> None:
    """Makes this process one of the hosts, before JAX has looked for its devices.

    cpu_devices: into how many the CPU of a host that works on its CPU is divided.
    Raises HostsApart if the hosts have not found each other.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu" and cpu_devices > 1:
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    if host.count == 1:
        return
    if host.leads:
        _check_free(host.coordinator)
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        from jaxlib import _jax  # pyright: ignore[reportAttributeAccessIssue]

        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        # JAX (0.10.2) has no setting for where Gloo listens: it would be where the machine's name leads, if anywhere.
        _jax.make_gloo_tcp_collectives = functools.partial(_jax.make_gloo_tcp_collectives, hostname=host.address)
    jax.config.update("jax_enable_preemption_service", False)  # it would take our SIGTERM away
    try:
        jax.distributed.initialize(
            host.coordinator,
            host.count,
            host.index,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=_SILENCE_SECONDS,
            shutdown_timeout_seconds=WORK_SECONDS,
            # By default it listens on every address of the machine.
            coordinator_bind_address=host.coordinator if host.leads else None,
        )
    except RuntimeError as error:  # another has died, say
        raise HostsApart(f"the hosts have not found each other at {host.coordinator}: {error}") from error
    if jax.process_index() != host.index:
        raise RuntimeError(
            f"JAX counts host {host.index} as process {jax.process_index()}: the accelerator's own order of hosts "
            "is another one than Ray's, which raylingvo cannot work with yet"
        )


def _check_free(address: str) -> None:
    """Raises HostsApart if something else listens at host:port; JAX (0.10.2) would end in a segmentation fault."""
    ip, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, int(port)))
        except OSError as error:
            raise HostsApart(f"the hosts cannot meet at {address}: {error.strerror}") from error


def leave(host: Host) -> None:
    """Waits until all hosts are done, and takes this one out."""
    if host.count > 1:
        jax.distributed.shutdown()


def told_by_leader(host: Host, value: Callable[[], Any]) -> Any:
    """What `value()` gives on host 0, a JSON value, on all hosts. The others do not call it.

    All hosts must ask, at the same point of their programs, and none may have a computation with the others under way.
    """
    if host.count == 1:
        return value()
    text = json.dumps(value()).encode() if host.leads else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int64(len(text)), is_source=host.leads))
    told = np.frombuffer(text.ljust(size), np.uint8) if host.leads else np.zeros(size, np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(told, is_source=host.leads)))


def all_say(host: Host, value: int) -> list[int]:
    """What each of the hosts says, in their order. All must ask, as for `told_by_leader`."""
    if host.count == 1:
        return [value]
    return [int(said) for said in multihost_utils.process_allgather(np.int64(value))]
