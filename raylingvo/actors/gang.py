"""The Trainer as the run sees it: one actor for each of its hosts, that live and die together."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raylingvo.actors.workers import Workers
from raylingvo.errors import HostsApart


class Cause(NamedTuple):
    """Why a Trainer ended badly."""

    host: int
    error: RayError
    certain: bool  # whatever the other hosts have to say
    lost: bool  # the host says that it has lost the others, and no other says more


class Gang:
    """The actors of one life of the Trainer. What can be asked of one of them, host 0 is asked."""

    def __init__(self, name: str, actors: Sequence[Any], group: PlacementGroup | None, workers: Workers):
        """name: that no other life has. group: where the actors are, if it is to go with them. workers: their home."""
        self.name = name
        self.actors = list(actors)
        self.leader = self.actors[0]
        self.refs: list[ray.ObjectRef] = []  # of what the hosts return, once they run
        self._group = group
        self._workers = workers
        self._results: dict[int, dict[str, Any]] = {}
        self._errors: dict[int, RayError] = {}

    def run(self) -> Sequence[ray.ObjectRef]:
        """Starts training; the results of `TrainerActor.run`, in the order of hosts."""
        # Not waited for here: it is there when host 0 has a machine.
        meeting_point = [self.leader.meeting_point.remote()] if len(self.actors) > 1 else []
        self.refs = [actor.run.remote(*meeting_point) for actor in self.actors]
        return self.refs

    def release(self) -> None:
        """Ends the actors; or lets them wait for another run, if this one's work is done."""
        # Processes that have met once cannot meet others (JAX 0.10.2).
        well = len(self.actors) == 1 and self.result() is not None
        for actor in self.actors:
            self._workers.release(actor, well=well)
        if self._group is not None:
            with contextlib.suppress(RayError):  # of a cluster that has ended
                remove_placement_group(self._group)

    def ended(self, ref: ray.ObjectRef, result: dict[str, Any] | RayError) -> None:
        """How a host has ended."""
        ends: dict[int, Any] = self._errors if isinstance(result, RayError) else self._results
        ends[self.refs.index(ref)] = result

    def result(self) -> dict[str, Any] | None:
        """What host 0 has returned, `preempted` if any of them was; None while not all have returned."""
        if len(self._results) < len(self.actors):
            return None
        return {**self._results[0], "preempted": any(result["preempted"] for result in self._results.values())}

    def cause(self, crash: Callable[[int], str]) -> Cause:
        """Why it ended badly.

        When one host dies the others fail too, in calls to it, or are ended by JAX; whose end is heard of first is
        chance. What is certain is an error that is not of the connection, and a death that left no word. crash: gives
        what a host has said that died of a fatal signal. There must be an error.
        """
        ranks = {index: self._rank(index, error, crash) for index, error in self._errors.items()}
        first = min(ranks, key=lambda index: (ranks[index], index))
        alone = len(self._results) + len(self._errors) == len(self.actors)
        lost = len(self.actors) > 1 and ranks[first] == _LOST
        return Cause(first, self._errors[first], certain=alone or ranks[first] == 0, lost=lost)

    def _rank(self, index: int, error: RayError, crash: Callable[[int], str]) -> int:
        if isinstance(error, RayTaskError):
            of_jax, text = type(error.cause).__name__ in _RUNTIME_ERRORS, str(error.cause)
            apart = isinstance(error.cause, HostsApart) or re.search(r"\bGloo [\w-]+ failed", text)
            if apart or (of_jax and _CONNECTION.search(text)):
                return _LOST
            return 2 if of_jax else 0
        return 1 if crash(index) else 0


# JAX raises these for whatever goes wrong in a computation.
_RUNTIME_ERRORS = {"JaxRuntimeError", "XlaRuntimeError"}
# What their texts have if the others could not be found, or do not answer any more.
_CONNECTION = re.compile(
    "Gloo|gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|heartbeat|[Cc]oordination|Connection (reset|closed)"
)
_LOST = 3  # the rank of an error of the connection


def in_words(resources: Mapping[str, float], count: int) -> str:
    """`2 x {CPU: 1}`."""
    amounts = ", ".join(f"{name}: {amount:g}" for name, amount in resources.items())
    return f"{count} x {{{amounts}}}"
