"""Early stopping: a pure function of the history of an evaluation metric."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raylingvo.experiment import EarlyStop


def stop_reason(config: EarlyStop, history: Iterable[tuple[int, float]]) -> str | None:
    """Why to stop, given the (step, value) evaluations so far; None to go on.

    A value is better than the best so far only if it beats it by more than `tolerance`. Training stops when the last
    evaluated step is more than `window` steps after the best one and not before `min_steps`. Lingvo:
    core/early_stop.py. Order and repetition of the history do not matter.
    """
    best_step, best = None, 0.0
    last_step = -1
    sign = 1.0 if config.mode == "max" else -1.0
    for step, value in sorted(dict(history).items()):
        last_step = step
        if best_step is None or sign * (value - best) > config.tolerance:
            best_step, best = step, value
    if best_step is None or last_step < config.min_steps or last_step - best_step <= config.window:
        return None
    return (
        f"early stop: {config.metric} has not improved on {best:.6g} (step {best_step}) "
        f"by more than {config.tolerance:g} in {last_step - best_step} steps"
    )
