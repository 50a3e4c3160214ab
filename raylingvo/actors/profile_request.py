"""A profile of a run that goes on, as a command asks for it: of the run's Trainer itself, whichever Ray that is in."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from raylingvo.actors.calls import PROFILE_SECONDS, fetch
from raylingvo.actors.cluster import Cluster, joined, rejoined
from raylingvo.actors.detached import chosen, driver_ids, home_of
from raylingvo.actors.remote import TRAINERS
from raylingvo.errors import RequestError
from raylingvo.monitor.runs import Run

_GLANCE_SECONDS = 10.0  # until then a Trainer that is there has answered
_NO_STEPS = "there are no steps to profile"


def profile(name: str, steps: int, address: str | None) -> dict[str, Any]:
    """Has the Trainer of a live run profile its next steps; returns what profiling.take does.

    name: the run's logdir; or its id, or how that begins, if it is in a cluster. address: of that cluster; None: what
    the logdir says, or the cluster of this machine.
    Raises RequestError if there is no such run, it does not train, or its Ray is not to be reached from here.
    """
    home = home_of(name)
    if home is not None and home.info["status"] != "running":
        raise RequestError(f"run {home.id} is over ({home.info['status']}): {_NO_STEPS}")
    with joined(address) if home is None or address is not None else _ray_of(home):
        trainers = _trainers()
        run = chosen(name, sorted({*trainers, *driver_ids()})) if home is None else home.id
        if run not in trainers:
            raise RequestError(f"run {run} has no Trainer there now: {_NO_STEPS}")
        return _ask(trainers[run], steps)


def _ray_of(home: Run) -> contextlib.AbstractContextManager[Cluster]:
    """The Ray of a live run, by what its logdir says."""
    if "ray" not in home.info or ray.is_initialized():
        return joined(None)
    if (there := home.info["ray"]) is None:
        raise RequestError(f"run {home.id} is a trial of a sweep, which works for others too: it cannot be profiled")
    # What another user has written may lead the token to where that user listens.
    is_ours = (home.logdir / "run.json").stat().st_uid == os.getuid()
    if not there["own"]:
        return joined(there["address"] if is_ours else None)
    if (host := home.info["process"]["host"]) != socket.gethostname():
        raise RequestError(f"run {home.id} has a Ray of its own on {host}; profile it there")
    if not is_ours:
        raise RequestError(f"run {home.id} is another user's, as is its Ray")
    return rejoined(there["address"])


def _trainers() -> dict[str, str]:
    """The runs that have a Trainer here, and the name of its host 0."""
    named: Any = ray.util.list_named_actors(all_namespaces=True)
    return {actor["name"].partition("/")[0]: actor["name"] for actor in named if actor["namespace"] == TRAINERS}


def _ask(name: str, steps: int) -> dict[str, Any]:
    try:
        trainer = ray.get_actor(name, namespace=TRAINERS)
        fetch(trainer.status.remote(), _GLANCE_SECONDS)  # what waits for a machine would be waited for
    except GetTimeoutError as error:
        raise RequestError(f"the Trainer does not answer, as before it has started: {_NO_STEPS}") from error
    except (ValueError, RayActorError) as error:  # there is none of this name any more
        raise RequestError(f"the Trainer has just ended: {_NO_STEPS}") from error
    try:
        return fetch(trainer.profile.remote(steps), PROFILE_SECONDS)
    except RayTaskError as error:
        if isinstance(error.cause, RequestError):
            raise error.cause from None
        raise
    except GetTimeoutError as error:
        raise RequestError(f"the Trainer has not answered for {PROFILE_SECONDS:.0f} s") from error
    except RayError as error:
        raise RequestError("the Trainer died before its profile was taken") from error
