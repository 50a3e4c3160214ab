"""The rate decays when an evaluation metric no longer improves: a pure function of the metric's history."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from raylingvo.experiment import DevBased


class DevBasedState(NamedTuple):
    """Where a history has led to."""

    factor: float = 1.0  # what multiplies the learning rate
    ref_step: int = 0  # of the last decay or the best value, whichever is later
    best_step: int = 0
    last_step: int = 0


def dev_based(config: DevBased, history: Iterable[tuple[int, float]]) -> DevBasedState:
    """Multiplies by `decay` whenever the metric has not improved for `window` steps, down to `min_factor`.

    history: (step, value) of all evaluations so far, in any order. A value is better than the best so far if it beats
    it by more than `tolerance`; NaN (it was not finite) is worse than any number. After a decay, `window` steps are
    waited for anew. The empty history gives factor 1. Lingvo: DevBasedSchedule, whose mode is always "min": it does not
    look at that of its metric history.
    """
    state, best = DevBasedState(), None
    sign = 1.0 if config.mode == "max" else -1.0
    for step, value in sorted(dict(history).items()):
        improved = (
            best is None or (math.isnan(best) and not math.isnan(value)) or sign * (value - best) > config.tolerance
        )
        best, best_step = (value, step) if improved else (best, state.best_step)
        ref_step, factor = max(state.ref_step, best_step), state.factor
        if step - ref_step >= config.window and factor > config.min_factor:
            factor, ref_step = max(config.min_factor, factor * config.decay), step
        state = DevBasedState(factor, ref_step, best_step, step)
    return state
