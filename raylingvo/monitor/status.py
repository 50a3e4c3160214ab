"""What a run says about itself, several times a second: the input of the live views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

from raylingvo.monitor.exported import Sample

TrainerState = Literal["starting", "compiling", "training", "stopping", "finished", "failed"]
ReaderState = Literal["starting", "waiting", "working", "finished", "failed"]


class TrainerStatus(TypedDict):
    state: TrainerState
    step: int
    max_steps: int
    steps_per_second: float | None
    examples_per_second: float | None
    loss: float | None
    input_wait_fraction: float | None  # of the time, 0 to 1
    bad_records: int  # skipped in the training data
    skipped_updates: int
    rollbacks: int
    restarts: int
    preemptions: int
    # Train states of other runs that it has gone on with, see actors/within.py; None: not known yet.
    adopted: Sequence[Mapping[str, Any]] | None


class ReaderStatus(TypedDict):
    """An Evaler or a Decoder."""

    name: str  # as Ray's dashboard shows it, e.g. Evaler(test)
    role: Literal["evaler", "decoder"]
    dataset: str
    policy: str
    state: ReaderState
    step: int | None  # the last one done
    lag_steps: int | None  # trainer's step less this one, when it was done
    lag_seconds: float | None  # from the end of that step to its metrics
    done: int
    skipped: int
    waiting: int  # snapshots queued for it
    metrics: Mapping[str, float]
    restarts: int
    set_aside: int  # snapshots that it died of


class StoreStatus(TypedDict):
    """The SnapshotStore."""

    held: int
    bytes: int
    max_bytes: int
    on_disk: int


class Status(TypedDict):
    run: str
    experiment: str
    dashboard: str | None  # address
    elapsed: float  # seconds
    trainer: TrainerStatus
    readers: Sequence[ReaderStatus]
    store: StoreStatus
    samples: NotRequired[Sequence[Sample]]  # what roles export, see exported.py
