"""The learner: how gradients become updates, as configuration."""

from __future__ import annotations

import dataclasses

import optax

from raylingvo.training.optimizers import Adam, Optimizer
from raylingvo.training.schedules import Constant, Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """One update rule: rate x schedule(step), through an optimizer, after an optional clip.

    The schedule multiplies `learning_rate` and is a pure function of the step. An update whose loss or gradients are
    not finite is skipped as a whole (see training/step.py). Lingvo: core/learner.py.
    """

    learning_rate: float
    schedule: Schedule = Constant()
    optimizer: Optimizer = Adam()
    clip_gradient_norm_to_value: float = 0.0  # global L2 norm; 0: off

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0 (got {self.learning_rate})")
        if not self.clip_gradient_norm_to_value >= 0:
            raise ValueError(f"clip_gradient_norm_to_value must be >= 0 (got {self.clip_gradient_norm_to_value})")

    def build(self) -> optax.GradientTransformation:
        """Gradients -> direction of unit rate. The step multiplies it by -learning_rate * schedule(step).

        The rate is kept out of the transformation, as an array in the train state, so that a sweep changes it
        without recompiling.
        """
        clip = self.clip_gradient_norm_to_value
        return optax.chain(*([optax.clip_by_global_norm(clip)] if clip else []), self.optimizer.build())
