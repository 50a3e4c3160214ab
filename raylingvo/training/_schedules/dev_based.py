"""The rate decays when an evaluation metric no longer improves: a pure function of the metric's history."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple


class DevBasedState(NamedTuple):
    """Where a history has led to."""

    factor: float = 1.0  # the multiplier
    ref_step: int = 0  # of the last decay or the best value, whichever is later
    best_step: int = 0
    last_step: int = 0


def dev_based(
    history: Iterable[tuple[int, float]],
    *,
    mode: Literal["min", "max"] = "min",
    tolerance: float = 0.0,
    window: int = 10_000,
    decay: float = 0.5,
    min_factor: float = 0.01,
) -> DevBasedState:
    """Multiplies by `decay` whenever the metric has not improved for `window` steps, down to `min_factor`.

    history: (step, value) of all evaluations so far, in order. A value is better than the best so far if it beats it by
    more than `tolerance`. After a decay, `window` steps are waited for anew. The empty history gives factor 1.
    Lingvo: DevBasedSchedule. It is no Schedule: it depends on when evaluations came, not on the step alone.
    """
    state, best = DevBasedState(), None
    sign = 1.0 if mode == "max" else -1.0
    for step, value in history:
        improved = best is None or sign * (value - best) > tolerance
        best, best_step = (value, step) if improved else (best, state.best_step)
        ref_step, factor = max(state.ref_step, best_step), state.factor
        if step - ref_step >= window and factor > min_factor:
            factor, ref_step = max(min_factor, factor * decay), step
        state = DevBasedState(factor, ref_step, best_step, step)
    return state
