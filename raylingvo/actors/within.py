"""What a run is told by an actor that drives it, instead of a command's process of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import ray

from raylingvo.actors.cluster import Cluster
from raylingvo.actors.workers import Workers
from raylingvo.config import FrozenDict


class Command(NamedTuple):
    """What a run is to do.

    end: finish the step, evaluate it, and be finished. pause: finish the step and be interrupted, to go on later.
    adopt: go on with the train state of another run.
    """

    do: Literal["end", "pause", "adopt"]
    reason: str = ""  # to end, to pause
    hurry: bool = False  # to pause: no process is to be left for another run
    state: Mapping[str, Any] = FrozenDict()  # to adopt: what the `newest_state` of the other run's store gave
    params: Mapping[str, Any] = FrozenDict()  # dotted key of the experiment -> value, from then on
    decided: float = 0.0  # Unix seconds
    origin: Mapping[str, Any] = FrozenDict()  # to adopt: JSON values, kept with what the run knows of the adoption


class Adopted(TypedDict):
    """What a run knows, and saves with its state, of a train state of another run that it has gone on with."""

    step: int  # after which
    params: dict[str, Any]  # set from then on
    origin: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Within:
    """Where a run is at home."""

    run: str | None = None  # its id, if it is not there yet; who looks for it knows it by this
    cluster: Cluster  # that the actor is in
    begun: Callable[[], None] = lambda: None  # called when the request has proved right, and run.json says `running`
    workers: Workers = dataclasses.field(default_factory=Workers)
    # A reference to the next command, or to None if there was none for a while.
    commands: Callable[[], ray.ObjectRef] | None = None
    runs_beside: int = 0  # how many others share the object store
    environment: Mapping[str, str] = FrozenDict()  # of the roles, besides
    # References to (dataset, what it opens to), for roles that would read the same.
    data: Sequence[ray.ObjectRef] = ()
    # Called with the SnapshotStore when it is there, and before it ends.
    opened: Callable[[Any], None] = lambda store: None
    closing: Callable[[], None] = lambda: None
