"""The learner: how gradients become updates, as configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from raylingvo.config import FrozenDict
from raylingvo.training.grad_norm_tracker import GradNormTracker
from raylingvo.training.optimizers import Adam, DynamicAccumulator, Optimizer, every
from raylingvo.training.paths import check_pattern, matches
from raylingvo.training.schedules import Constant, Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """One update rule, for the variables it trains.

    In this order (training/update.py): gradients of the loss; L2, then L1; what the batch's dataset does not train
    becomes 0; the norm; `Task.adjust_gradients`; clipping, and whether the update is dropped; the optimizer, at
    learning_rate x schedule(step). An update whose loss or gradients are not finite is always dropped.
    Regular expressions are searched for in paths such as "layers/0/kernel"; one that matches no weight of the model is
    an error when a run starts. Lingvo: core/learner.py, whose default schedule is Continuous.
    """

    learning_rate: float
    schedule: Schedule = Constant()
    optimizer: Optimizer = Adam()
    # The global L2 norm, or that of each variable by itself, is at most this; 0: off. With the latter no update is
    # dropped for its norm, whatever is set below, and the tracker rests.
    clip_gradient_norm_to_value: float = 0.0
    clip_gradient_single_norm_to_value: float = 0.0
    # Drop updates of a global norm at or above this; 0: off.
    grad_norm_to_clip_to_zero: float = 0.0
    grad_norm_tracker: GradNormTracker | None = None
    # False: the optimizer sees the gradients as they are; nothing is adjusted, clipped, or dropped for its norm.
    scale_gradients: bool = True
    # A dropped update leaves weights and slots as they were ("skip"), or the optimizer gets gradients of 0 and moves on
    # by what it remembers ("zero", as in Lingvo).
    dropped_updates: Literal["skip", "zero"] = "skip"
    # Add w / 2 x the sum of squares, or w x the sum of absolute values, of the variables to what is minimised, but not
    # of those that `skip_lp_regularization` matches. Lingvo's layers say themselves which they are.
    l2_regularizer_weight: float | None = None
    l1_regularizer_weight: float | None = None
    skip_lp_regularization: str | None = None
    # Which variables it trains: those that match the filter (None: all) and not the exclusion.
    bprop_variable_filter: str | None = None
    bprop_variable_exclusion: str | None = None
    # For a mixture of datasets batch by batch: an expression for each of them. A batch gives gradients to the variables
    # that its dataset's matches (the empty one: all); those of others are 0. Lingvo: of the input, the same name.
    bprop_variable_filters: tuple[str, ...] = ()
    # Report the norms of each variable and its gradient as well: grad_norm/PATH and var_norm/PATH.
    report_variable_norms: bool = False
    # The metric of `Task.loss` to minimise. None: the loss itself; for one of several learners, the metric of its name.
    loss_name: str | None = None

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0 (got {self.learning_rate})")
        for field in (
            "clip_gradient_norm_to_value",
            "clip_gradient_single_norm_to_value",
            "grad_norm_to_clip_to_zero",
            "l2_regularizer_weight",
            "l1_regularizer_weight",
        ):
            value = getattr(self, field)
            if value is not None and not value >= 0:
                raise ValueError(f"{field} must be >= 0 (got {value})")
        if self.clip_gradient_norm_to_value and self.clip_gradient_single_norm_to_value:
            raise ValueError(
                "clip_gradient_norm_to_value and clip_gradient_single_norm_to_value exclude each other "
                f"(got {self.clip_gradient_norm_to_value}, {self.clip_gradient_single_norm_to_value})"
            )
        for outer in every(self.optimizer):
            if any(isinstance(one, DynamicAccumulator) for one in outer.inner()):
                raise ValueError(
                    "optimizer must have a DynamicAccumulator outermost: the schedule goes by its updates "
                    f"(got one in {type(outer).__name__})"
                )
        if self.loss_name is not None:
            _check_loss("loss_name", self.loss_name)
        for field in ("skip_lp_regularization", "bprop_variable_filter", "bprop_variable_exclusion"):
            check_pattern(field, getattr(self, field))
        for pattern in self.bprop_variable_filters:
            check_pattern("bprop_variable_filters", pattern)

    @property
    def drops_updates(self) -> bool:
        """Whether there are updates that it drops for their norm."""
        clips_each = bool(self.clip_gradient_single_norm_to_value)
        chooses = bool(self.grad_norm_to_clip_to_zero or self.grad_norm_tracker)
        return self.scale_gradients and chooses and not clips_each

    def trains(self, path: str) -> bool:
        """Whether the variable of this path is one that it trains."""
        chosen = self.bprop_variable_filter is None or matches(self.bprop_variable_filter)(path)
        return chosen and not matches(self.bprop_variable_exclusion)(path)


ONLY = ""  # the name of a learner that is the only one
TASK_LOSS = ""  # the loss that `Task.loss` returns, in place of the name of a metric


def by_name(learner: Learner | Mapping[str, Learner]) -> Mapping[str, Learner]:
    """The learners of an experiment: one, under the name ONLY, or several. Raises ValueError for a bad name."""
    if isinstance(learner, Learner):
        return FrozenDict({ONLY: learner})
    if not learner:
        raise ValueError("learner must be one, or at least one by name (got none)")
    for name in learner:
        if not name.isidentifier() or name in Learner.__dataclass_fields__:
            raise ValueError(f"learner: {name!r} is not a name of letters, digits and _, or is that of a field")
        if learner[name].loss_name is None:
            _check_loss(f"learner.{name}.loss_name, by default the learner's name,", name)
    return FrozenDict(learner)


def _check_loss(field: str, metric: str) -> None:
    if metric.startswith("num_"):
        raise ValueError(f"{field} must be a mean, not a count (got {metric!r})")


def loss_names(learners: Mapping[str, Learner]) -> dict[str, str]:
    """The metric that each learner minimises, or TASK_LOSS."""
    return {name: learner.loss_name or (TASK_LOSS if name == ONLY else name) for name, learner in learners.items()}


def weighed_metric(loss: str) -> str:
    """The metric whose weight is that of a loss: the name of a metric, or TASK_LOSS."""
    return "loss" if loss == TASK_LOSS else loss
