"""An experiment is data: the frozen dataclass tree that names a task, its datasets, its learner and how to run them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from raylingvo.config import FrozenDict
from raylingvo.data.dataset import Dataset
from raylingvo.models.task import Task
from raylingvo.parallel.mesh import Mesh
from raylingvo.training.learner import Learner, by_name, loss_names
from raylingvo.training.paths import check_pattern
from raylingvo.training.schedules import Schedule

# Which snapshots an Evaler or Decoder works on: the newest one whenever it is free (the others are counted as
# skipped), every one in order (they wait for it in the store), or only the run's last one.
Policy = Literal["latest", "every", "last"]


def _at_least(config: object, minimum: float, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        if value is not None and not value >= minimum:
            raise ValueError(f"{field} must be >= {minimum} (got {value})")


def _positive(config: object, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        if value is not None and not value > 0:
            raise ValueError(f"{field} must be > 0 (got {value})")


def _dataset_and_name(field: str, value: str) -> None:
    if not all(value.partition("/")[::2]):
        raise ValueError(f"{field} must be DATASET/NAME, such as test/accuracy (got {value!r})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshots:
    """When the Trainer publishes its weights to the SnapshotStore, and how much memory the store may hold."""

    every_steps: int = 100
    # The whole train state (optimizer slots too), from which a lost Trainer recovers, goes with every k-th snapshot.
    state_every: int = 1
    # Bounds on what the store keeps in memory. Snapshots that a reader still has to see (policy `every`) move to
    # local disk beyond them; all others are dropped, oldest first.
    max_bytes: int = 2 << 30
    max_count: int = 8

    def __post_init__(self) -> None:
        _at_least(self, 1, "every_steps", "state_every", "max_bytes", "max_count")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
    """Keep the checkpoints that score best on a metric of an Evaler or a Decoder.

    One that has not been scored yet waits for it among the newest `keep_last + keep`; an Evaler or Decoder that is
    further behind needs a larger `keep_last`. Where both report a metric of the name, the Evaler's counts.
    """

    metric: str  # DATASET/NAME, for example test/accuracy or dev/corpus_bleu
    mode: Literal["min", "max"]
    keep: int = 1

    def __post_init__(self) -> None:
        _at_least(self, 1, "keep")
        _dataset_and_name("metric", self.metric)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When checkpoints are written (the last step's always is) and which are kept (the newest always is)."""

    every_steps: int | None = None
    every_seconds: float | None = 600.0  # Lingvo's save_interval_seconds
    keep_last: int = 3
    keep_every_seconds: float | None = None  # besides, one in every so many seconds for ever
    best: Best | None = None  # besides, the best by a metric

    def __post_init__(self) -> None:
        _at_least(self, 1, "every_steps", "keep_last")
        _positive(self, "every_seconds", "keep_every_seconds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """Stop when a metric has not improved by more than `tolerance` for `window` steps."""

    metric: str  # DATASET/NAME, as for Best
    mode: Literal["min", "max"]
    window: int  # steps
    tolerance: float = 0.0
    min_steps: int = 0  # never stop before this step

    def __post_init__(self) -> None:
        _at_least(self, 1, "window")
        _at_least(self, 0, "tolerance", "min_steps")
        _dataset_and_name("metric", self.metric)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DevBased:
    """Multiply the learning rate by `decay` each time a metric has not improved for `window` steps.

    A value is better only if it beats the best by more than `tolerance`. The rate is never less than `min_factor` of
    what it would be. It changes when the Trainer hears of an evaluation: with this, when evaluations end decides on the
    weights. Lingvo: DevBasedSchedule, with its defaults.
    """

    metric: str  # DATASET/NAME, as for Best
    mode: Literal["min", "max"] = "min"
    tolerance: float = 0.0
    window: int = 10_000  # steps
    decay: float = 0.5
    min_factor: float = 0.01

    def __post_init__(self) -> None:
        _at_least(self, 1, "window")
        _at_least(self, 0, "tolerance")
        for field in ("decay", "min_factor"):
            if not 0 < getattr(self, field) <= 1:
                raise ValueError(f"{field} must be in (0, 1] (got {getattr(self, field)})")
        _dataset_and_name("metric", self.metric)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmStart:
    """Start with variables of a checkpoint of another run, once: a run that goes on takes its own.

    The first rule (pattern, replacement) whose regular expression matches a variable's whole path gives the name in the
    checkpoint. A variable that none matches begins as usual; a rule that matches no variable is an error.
    """

    logdir: str  # relative to where the run is started first
    checkpoint: int | Literal["latest"] = "latest"  # a step; the latest when the run is started first
    rules: tuple[tuple[str, str], ...] = (("(.*)", r"\1"),)

    def __post_init__(self) -> None:
        if self.checkpoint != "latest" and not (isinstance(self.checkpoint, int) and self.checkpoint >= 0):
            raise ValueError(f"checkpoint must be latest or a step (got {self.checkpoint!r})")
        if not self.rules:
            raise ValueError("rules must have at least one (got none)")
        for pattern, replacement in self.rules:
            check_pattern("rules", pattern, replacement)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """The Trainer's settings."""

    dataset: str = "train"
    batch_size: int
    max_steps: int
    seed: int = 0
    report_every_steps: int = 100
    snapshots: Snapshots = Snapshots()
    checkpoints: Checkpoints = Checkpoints()
    early_stop: EarlyStop | None = None
    dev_based: DevBased | None = None
    # Updates with a non-finite loss or gradient are skipped. After this many in a row the Trainer rolls back to the
    # last good snapshot and goes on with the following batches; the run fails when that did not help so many times.
    max_nonfinite_in_a_row: int = 10
    max_rollbacks: int = 3
    # How often a Trainer that died, or failed after its first step, is started again from its newest state without
    # having got further. The same error at the same step twice ends the run at once.
    max_restarts: int = 3
    # Moving averages of the weights: Evalers and Decoders get them in the place of the weights. The decay is ema_decay
    # (0: off) or the value of ema_schedule, such as EmaDecay; one of the two at most. ema_decay_moving_vars: average
    # also the variables that are not trained, such as moving statistics.
    ema_decay: float = 0.0
    ema_schedule: Schedule | None = None
    ema_decay_moving_vars: bool = False
    # Gaussian noise on the weights, of this standard deviation (0: off), while training, from this step on, for the
    # variables in whose path this regular expression is found (None: all).
    vn_std: float = 0.0
    vn_start_step: int = 0
    vn_variables: str | None = None
    warm_start: WarmStart | None = None

    def __post_init__(self) -> None:
        _at_least(self, 1, "batch_size", "max_steps", "report_every_steps", "max_nonfinite_in_a_row")
        _at_least(self, 0, "seed", "max_rollbacks", "max_restarts", "vn_std", "vn_start_step")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1) (got {self.ema_decay})")
        if self.ema_schedule is not None and self.ema_decay:
            raise ValueError(
                f"ema_decay and ema_schedule exclude each other (got {self.ema_decay}, {self.ema_schedule})"
            )
        check_pattern("vn_variables", self.vn_variables)
        if self.seed >= 2**32:  # of which JAX would silently keep the lower 32 bits
            raise ValueError(f"seed must be < 2^32 (got {self.seed})")

    @property
    def averages(self) -> bool:
        """Whether there are moving averages of the weights."""
        return bool(self.ema_decay) or self.ema_schedule is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How an Evaler or a Decoder reads snapshots and one dataset."""

    policy: Policy = "latest"
    batch_size: int | None = None  # None: train.batch_size
    max_examples: int | None = None  # None: the whole dataset
    max_restarts: int = 3  # how often a role that died is started again without a result

    def __post_init__(self) -> None:
        _at_least(self, 1, "batch_size", "max_examples")
        _at_least(self, 0, "max_restarts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoleResources:
    """What one role asks of Ray."""

    num_cpus: float = 0.0
    num_gpus: float = 0.0
    custom: Mapping[str, float] = FrozenDict()  # e.g. {TPU: 4}

    def __post_init__(self) -> None:
        _at_least(self, 0, "num_cpus", "num_gpus")
        object.__setattr__(self, "custom", FrozenDict(self.custom))
        for name, amount in self.custom.items():
            if not amount >= 0:
                raise ValueError(f"custom.{name} must be >= 0 (got {amount})")
        for name, field in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
            if name in self.custom:
                raise ValueError(f"custom must not have {name}: that is {field}")

    @property
    def amounts(self) -> dict[str, float]:
        """By Ray's names, without those of which there is none."""
        named = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.custom}
        return {name: amount for name, amount in named.items() if amount}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources by role; Evalers and Decoders share what is left of a small machine unless told otherwise.

    A run that goes on may have others: they are not part of what it computes, but for the order of its additions.
    """

    # Of each of the `hosts` processes of the Trainer, which need not be on machines of their own.
    trainer: RoleResources = RoleResources(num_cpus=1.0)
    hosts: int = 1
    cpu_devices: int = 1  # of a host that trains on its CPU: into how many JAX divides it
    mesh: Mesh = Mesh()
    evaler: RoleResources = RoleResources()
    decoder: RoleResources = RoleResources()
    store: RoleResources = RoleResources()

    def __post_init__(self) -> None:
        _at_least(self, 1, "hosts", "cpu_devices")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that determines a run, except where it runs.

    `eval` and `decode` are keyed by dataset name: there is one Evaler, and one Decoder, for each entry.
    `learner` may be several, by name, each with its loss and its variables.
    Raises ValueError when the parts do not fit together.
    """

    name: str = ""
    task: Task
    datasets: Mapping[str, Dataset]
    learner: Learner | Mapping[str, Learner]
    train: Train
    eval: Mapping[str, Reading] = FrozenDict()
    decode: Mapping[str, Reading] = FrozenDict()
    resources: Resources = Resources()

    def __post_init__(self) -> None:
        if not isinstance(self.learner, Learner):
            object.__setattr__(self, "learner", by_name(self.learner))
        for field in ("datasets", "eval", "decode"):
            object.__setattr__(self, field, FrozenDict(getattr(self, field)))
        for field, names in (("train.dataset", [self.train.dataset]), ("eval", self.eval), ("decode", self.decode)):
            for name in names:
                if name not in self.datasets:
                    raise ValueError(f"{field}: no dataset {name!r}; the experiment has {', '.join(self.datasets)}")
        for name in self.datasets:
            if not name.isidentifier():
                raise ValueError(f"datasets: {name!r} is not a name of letters, digits and _")
        for field, metric in self.watched_metrics().items():
            if metric.partition("/")[0] not in {*self.eval, *self.decode}:
                raise ValueError(
                    f"{field}: {metric!r} is of a dataset that is neither evaluated nor decoded; "
                    f"eval has {', '.join(self.eval) or 'none'}, decode has {', '.join(self.decode) or 'none'}"
                )

    @property
    def learners(self) -> Mapping[str, Learner]:
        """By name; one learner has the name learner.ONLY."""
        return by_name(self.learner)

    @property
    def loss_names(self) -> Mapping[str, str]:
        """The metric that each learner minimises, or learner.TASK_LOSS."""
        return loss_names(self.learners)

    def watched_metrics(self) -> dict[str, str]:
        """Dotted key -> DATASET/NAME of the metrics of Evalers and Decoders that steer the run."""
        watched = {
            "train.checkpoints.best.metric": self.train.checkpoints.best,
            "train.early_stop.metric": self.train.early_stop,
            "train.dev_based.metric": self.train.dev_based,
        }
        return {field: setting.metric for field, setting in watched.items() if setting is not None}

    def reading_batch_size(self, reading: Reading) -> int:
        """The batch size an Evaler or Decoder uses."""
        return reading.batch_size or self.train.batch_size
