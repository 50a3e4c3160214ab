"""Early stopping: a pure function of the history of a metric."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raylingvo.experiment import EarlyStop


def stop_reason(config: EarlyStop, history: Iterable[tuple[int, float]]) -> str | None:
    """Why to stop, given the (step, value) evaluations so far; None to go on.

    A value is better than the best so far only if it beats it by more than `tolerance`; NaN (it was not finite) is
    worse than any number. Training stops when the last evaluated step is more than `window` steps after the best one
    and not before `min_steps`; the first one is the best as long as all are NaN. Order and repetition of the history do
    not matter. Lingvo: core/early_stop.py.
    """
    best_step, best = None, math.nan
    last_step = -1
    sign = 1.0 if config.mode == "max" else -1.0
    for step, value in sorted(dict(history).items()):
        last_step = step
        first_finite = math.isnan(best) and not math.isnan(value)
        if best_step is None or first_finite or sign * (value - best) > config.tolerance:
            best_step, best = step, value
    if best_step is None or last_step < config.min_steps or last_step - best_step <= config.window:
        return None
    if math.isnan(best):
        return f"early stop: {config.metric} has not been finite from step {best_step} to {last_step}"
    return (
        f"early stop: {config.metric} has not improved on {best:.6g} (step {best_step}) "
        f"by more than {config.tolerance:g} in {last_step - best_step} steps"
    )
