"""A profile of a run that goes on, as a command asks for it: of the run's Trainer itself, whichever Ray that is in."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
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
    match home.info["ray"]:
        case None:
            raise RequestError(
                f"run {home.id} is a trial of a sweep, which works for others too: it cannot be profiled"
            )
        case {"own": False, "address": None}:  # of a run that has joined it by `ray://`
            return joined(None)
        case {"own": False, "address": str(address)}:
            return joined(None) if _doubt(home) else _reached(home, joined(address))
        case {"own": True, "address": str(address)}:
            _refuse_strange(home)
            return _reached(home, rejoined(address))
        case other:
            raise _damaged(home, f"ray is to have an address, and own, true or false (got {other!r})")


def _refuse_strange(home: Run) -> None:
    """A Ray that is not one of this user's processes on this machine."""
    match home.info.get("process"):
        case {"host": str(host)}:
            pass
        case other:
            raise _damaged(home, f"process is to have a host (got {other!r})")
    if host != socket.gethostname():
        raise RequestError(f"run {home.id} has a Ray of its own on {host}; profile it there")
    if doubt := _doubt(home):
        raise RequestError(f"run {home.id} {doubt}")


def _doubt(home: Run) -> str:
    """Why its run.json may be another user's words, which may lead the token to where that user listens; or ""."""
    if home.source is None or home.source.st_uid != os.getuid():
        return "is another user's, as is its Ray"
    # A group may write it: with umask 002, as is usual where every user has a group alone, runs make theirs so.
    if home.source.st_mode & stat.S_IWOTH:
        return "has a run.json that everybody may write: `chmod o-w` it, if it says what it should"
    return ""


@contextlib.contextmanager
def _reached(home: Run, ray_: contextlib.AbstractContextManager[Cluster]) -> Iterator[Cluster]:
    with contextlib.ExitStack() as opened:
        try:
            cluster = opened.enter_context(ray_)
        except RequestError as error:
            why = str(error).removeprefix(f"--address {home.info['ray']['address']}: ")  # which nobody has typed
            raise RequestError(
                f"the Ray of run {home.id} cannot be reached: {why}; the run has probably ended"
            ) from error
        yield cluster


def _damaged(home: Run, what: str) -> RequestError:
    return RequestError(f"LOGDIR {home.logdir}: run.json is damaged: {what}")


def _trainers() -> Mapping[str, Sequence[str]]:
    """The runs that have a Trainer here, and the names of its lives: one that was killed may still be listed."""
    named: Any = ray.util.list_named_actors(all_namespaces=True)
    lives: dict[str, list[str]] = {}
    for actor in named:
        if actor["namespace"] == TRAINERS:
            lives.setdefault(actor["name"].partition("/")[0], []).append(actor["name"])
    return lives


def _alive(lives: Sequence[str]) -> Any:
    """Host 0 of the life that answers."""
    silent = ended = None
    for name in lives:
        try:
            trainer = ray.get_actor(name, namespace=TRAINERS)
            fetch(trainer.status.remote(), _GLANCE_SECONDS)  # what waits for a machine would be waited for
        except GetTimeoutError as error:
            silent = error
        except (ValueError, RayActorError) as error:  # there is none of this name any more
            ended = error
        else:
            return trainer
    if silent is not None:
        raise RequestError(f"the Trainer does not answer, as before it has started: {_NO_STEPS}") from silent
    raise RequestError(f"the Trainer has just ended: {_NO_STEPS}") from ended


def _ask(lives: Sequence[str], steps: int) -> dict[str, Any]:
    trainer = _alive(lives)
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
