"""The rate decays when an evaluation metric no longer improves: a pure function of the metric's history."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raylingvo.experiment import DevBased


def dev_based(config: DevBased, history: Iterable[tuple[int, float]]) -> float:
    """The factor of the learning rate: times `decay` whenever the metric has not improved for `window` steps.

    It goes down to `min_factor`. history: (step, value) of all evaluations so far, in any order. A value is better than
    the best so far if it beats it by more than `tolerance`; NaN (it was not finite) is worse than any number. After a
    decay, `window` steps are waited for anew. The empty history gives factor 1. Lingvo: DevBasedSchedule, whose mode is
    always "min": it does not look at that of its metric history.
    """
    factor, best = 1.0, None
    ref_step = 0  # of the last decay or the best value, whichever is later
    sign = 1.0 if config.mode == "max" else -1.0
    for step, value in sorted(dict(history).items()):
        if best is None or (math.isnan(best) and not math.isnan(value)) or sign * (value - best) > config.tolerance:
            best, ref_step = value, step
        if step - ref_step >= config.window and factor > config.min_factor:
            factor, ref_step = max(config.min_factor, factor * config.decay), step
    return factor
