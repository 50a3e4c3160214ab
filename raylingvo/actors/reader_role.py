"""An Evaler or Decoder as its supervisor knows it, through all its lives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from raylingvo.actors.recovery import Recovery
from raylingvo.experiment import Experiment, Reading, RoleResources
from raylingvo.monitor.status import ReaderState, ReaderStatus


@dataclasses.dataclass
class ReaderRole:
    """What it is to do, the actor that does it now, and its last result."""

    kind: Literal["evaler", "decoder"]
    dataset: str
    reading: Reading
    resources: RoleResources
    actor: Any = None
    ended: Literal["finished", "failed"] | None = None
    restarting: bool = False  # when its time has come
    began_with_store: int = 0  # how often the store had been started again when the actor began
    killed_by: int | None = None  # the step it was working on when it died last
    recorded_before: set[int] = dataclasses.field(default_factory=set)  # steps with a result when this run started
    done: set[int] = dataclasses.field(default_factory=set)  # and since
    set_aside: list[int] = dataclasses.field(default_factory=list)  # steps that killed it twice
    step: int | None = None  # of the last result
    lag_steps: int | None = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.recovery = Recovery(self.reading.max_restarts)

    @property
    def name(self) -> str:
        """What the store and the live view call it."""
        return f"{self.kind.capitalize()}({self.dataset})"

    @property
    def folder(self) -> str:
        """Where it writes, in the logdir."""
        return f"{'eval' if self.kind == 'evaler' else 'decode'}_{self.dataset}"

    def status(self, store: Mapping[str, Any]) -> ReaderStatus:
        """For the live view. store: the SnapshotStore's status."""
        known = store.get("readers", {}).get(self.name, {})
        state: ReaderState = "working" if known.get("working_on") is not None else "waiting"
        return {
            "name": self.name,
            "role": self.kind,
            "dataset": self.dataset,
            "policy": self.reading.policy,
            "state": self.ended or ("starting" if self.actor is None else state),
            "step": self.step,
            "lag_steps": self.lag_steps,
            "lag_seconds": self.metrics.get("lag_seconds"),
            "done": len(self.done),
            "skipped": known.get("skipped", 0),
            "waiting": known.get("waiting", 0),
            "metrics": self.metrics,
            "restarts": self.recovery.restarts,
            "set_aside": len(self.set_aside),
        }


def reader_roles(experiment: Experiment) -> dict[str, ReaderRole]:
    """Name -> role, for every Evaler and Decoder of an experiment."""
    resources = experiment.resources
    roles = [
        *(ReaderRole("evaler", name, reading, resources.evaler) for name, reading in experiment.eval.items()),
        *(ReaderRole("decoder", name, reading, resources.decoder) for name, reading in experiment.decode.items()),
    ]
    return {role.name: role for role in roles}
