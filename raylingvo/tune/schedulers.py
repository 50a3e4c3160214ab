"""Which trials go on: Ray Tune's schedulers, told how a sweep counts, and population based training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from raylingvo.tune import record
from raylingvo.tune.population import Exploit, Population
from raylingvo.tune.request import Request
from raylingvo.tune.trainable import END, STEP, VALUE

# Whether it lets trials pause: then more trials may have begun than run.
PAUSING = ("hyperband", "pbt")


def make_scheduler(
    request: Request, exploit: Callable[[Exploit], bool], known: Iterable[record.Trial] = ()
) -> TrialScheduler:
    """The scheduler of a request.

    exploit: does what population based training has decided, if it can be done. known: trials of earlier starts, which
    it goes on with as they are; other schedulers hear again what they reported.
    """
    common: dict[str, Any] = {"metric": VALUE, "mode": request.mode, "time_attr": STEP}
    options, most = request.options, request.max_steps
    match options.scheduler:
        case "asha":
            # Trials end by themselves after max_steps: to the scheduler the last rung is one of those that all reach.
            return AsyncHyperBandScheduler(
                **common, max_t=most + 1, grace_period=request.grace_steps, reduction_factor=request.reduction_factor
            )
        case "hyperband":
            return _HyperBand(common, most, unit=request.grace_steps, reduction_factor=request.reduction_factor)
        case "median":
            return _MedianStoppingRule(**common, grace_period=request.grace_steps, min_samples_required=3)
        case "pbt":
            population = Population(request.space, mode=request.mode, interval=request.grace_steps, seed=options.seed)
            for trial in known:
                step, value = trial.last or (0, math.nan)
                population.add(trial.number, trial.params, step=step, value=value)
            return PopulationScheduler(population, exploit)
        case _:
            return FIFOScheduler()


class _HyperBand(HyperBandScheduler):
    """Counts in units of steps: the least that a trial gets. In single steps there would be brackets for one step."""

    def __init__(self, common: Mapping[str, Any], max_steps: int, *, unit: int, reduction_factor: int):
        # Trials end by themselves after max_steps, before what to the scheduler is the last rung.
        super().__init__(**common, max_t=max_steps // unit + 1, reduction_factor=reduction_factor)
        self._unit = unit

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        return super().on_trial_result(tune_controller, trial, {**result, STEP: result[STEP] / self._unit})


class _MedianStoppingRule(MedianStoppingRule):
    """Lets trials go on while there are few to compare with. Tune's would let them take turns, at a start for each."""

    def _on_insufficient_samples(self, tune_controller: Any, trial: Trial, time: float) -> str:
        return TrialScheduler.CONTINUE


class PopulationScheduler(FIFOScheduler):
    """Lets Tune have the decisions of a Population. If others wait for a place, a trial pauses after its interval."""

    def __init__(self, population: Population, exploit: Callable[[Exploit], bool]):
        super().__init__()
        self.population = population
        self._exploit = exploit

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self.population.add(trial.config["trial"], trial.config["params"])

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        number, step = trial.config["trial"], result.get(STEP)
        if step is None or END in trial.config or not self.population.is_due(number, step):
            return TrialScheduler.CONTINUE
        exploit = self.population.judge(number, step, result[VALUE])
        if exploit is not None and self._exploit(exploit):
            self.population.done(exploit)
        others = (other for other in tune_controller.get_trials() if other is not trial)
        waiting = any(other.status in (Trial.PENDING, Trial.PAUSED) for other in others)
        return TrialScheduler.PAUSE if waiting else TrialScheduler.CONTINUE

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Those that have not begun first, then who is least far."""
        waiting = [t for t in tune_controller.get_trials() if t.status in (Trial.PENDING, Trial.PAUSED)]
        return min(waiting, key=lambda t: (t.last_result or {}).get(STEP, 0), default=None)
