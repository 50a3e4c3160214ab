"""Which trials go on: Ray Tune's schedulers, told how a sweep counts, and population based training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, HyperBandScheduler, MedianStoppingRule, TrialScheduler

from raylingvo.tune import record
from raylingvo.tune.population import Exploit, Population
from raylingvo.tune.request import Request
from raylingvo.tune.rungs import Rungs
from raylingvo.tune.trainable import END, RAW, STEP, VALUE

# Schedulers that let trials take turns: more have begun than run, and how many are to run nobody counts.
PAUSING = ("hyperband", "pbt")
# These go on with the trials of an earlier start as they are; the others hear again what those report.
REMEMBERING = ("asha", "pbt")


def make_scheduler(
    request: Request,
    total: int,
    exploit: Callable[[Exploit], bool],
    over: Callable[[], bool],
    known: Iterable[record.Trial] = (),
    *,
    room: int,
    at_once: int | None = None,
) -> TrialScheduler:
    """The scheduler of a request.

    total: how many trials there are to be. exploit: does what population based training has decided, if it can be done.
    over: whether nothing more is to begin. known: for one of REMEMBERING, trials of earlier starts. room: for how many
    trials there is a place. at_once: how many trials `asha` may have run; None: as many as there is room for.
    """
    common: dict[str, Any] = {"metric": VALUE, "mode": request.mode, "time_attr": STEP}
    options, most = request.options, request.max_steps
    match options.scheduler:
        case "asha":
            rungs = Rungs(
                total,
                mode=request.mode,
                grace=request.grace_steps,
                factor=request.reduction_factor,
                max_steps=most,
            )
            return AshaScheduler(rungs, total, over, known, at_once)
        case "hyperband":
            return _HyperBand(common, most, unit=request.grace_steps, reduction_factor=request.reduction_factor)
        case "median":
            return _MedianStoppingRule(**common, grace_period=request.grace_steps, min_samples_required=3)
        case "pbt":
            population = Population(request.space, mode=request.mode, interval=request.grace_steps, seed=options.seed)
            for trial in known:
                step, value = trial.last or (0, math.nan)
                population.add(trial.number, trial.params, step=step, value=value)
            return PopulationScheduler(population, exploit, room)
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


class AshaScheduler(FIFOScheduler):
    """Lets Tune have the decisions of Rungs. Who has to wait pauses, and so makes room for others."""

    def __init__(
        self,
        rungs: Rungs,
        total: int,
        over: Callable[[], bool],
        known: Iterable[record.Trial] = (),
        at_once: int | None = None,
    ):
        """See `make_scheduler`."""
        super().__init__()
        self._rungs = rungs
        self._total = total
        self._over = over
        self._at_once = at_once
        self._num_under_way = 0  # or about to be, at the last step of Tune
        self._next: int | None = None
        self._released: set[int] = set()
        for trial in known:
            for step, value in trial.history:
                rungs.note(trial.number, step, value)
            if trial.status in record.ENDED:
                rungs.end(trial.number, whole=trial.status == "finished")
            elif trial.status != "paused" and trial.last is not None and rungs.is_beyond(trial.number, trial.last[0]):
                rungs.go_on(trial.number)

    def waits(self, number: int) -> bool:
        """Whether trial `number` is at a rung, and may not go on now."""
        return self._rungs.waits(number)

    def may_begin(self) -> bool:
        """Whether there is room for another trial, and nobody who waits is to have it."""
        return self._at_once is None or (self._num_under_way < self._at_once and self._next is None)

    def release(self, number: int) -> None:
        """It has come to its end before it heard that it is to wait: it goes on, to tell what it has not told."""
        self._rungs.go_on(number)
        self._released.add(number)

    def give_up(self, number: int) -> None:
        """It has failed, perhaps while it paused."""
        self._rungs.end(number, whole=False)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        number, step = trial.config["trial"], result.get(STEP)
        if step is None or END in trial.config:
            return TrialScheduler.CONTINUE
        self._rungs.note(number, step, result[RAW])
        return TrialScheduler.CONTINUE if self._rungs.may_go_on(number, step) else TrialScheduler.PAUSE

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self._rungs.end(trial.config["trial"], whole=result.get(END, [None])[0] == "finished")

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self.give_up(trial.config["trial"])

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """One that waits and may now go on, else one that has not begun. If there is none of both, all is over."""
        if self._over():
            return None
        trials = tune_controller.get_trials()
        paused = {trial.config["trial"]: trial for trial in trials if trial.status == Trial.PAUSED}
        self._num_under_way = sum(trial.status in (Trial.RUNNING, Trial.PENDING) for trial in trials)
        self._next = next((number for number in paused if number in self._released), self._rungs.next(paused))
        if self._next is None and self._num_under_way == 0 and len(trials) == self._total:
            self._next = self._rungs.last_resort(paused)
            if self._next is None:
                for trial in paused.values():
                    tune_controller.stop_trial(trial)
        if self._next is None or (self._at_once is not None and self._num_under_way >= self._at_once):
            return next((trial for trial in trials if trial.status == Trial.PENDING), None)
        chosen, self._next = self._next, None
        self._num_under_way += 1
        self._released.discard(chosen)
        self._rungs.go_on(chosen)
        return paused[chosen]


class PopulationScheduler(FIFOScheduler):
    """Lets Tune have the decisions of a Population. If others wait for its place, a trial pauses after its interval."""

    def __init__(self, population: Population, exploit: Callable[[Exploit], bool], room: int):
        """room: for how many trials there is a place."""
        super().__init__()
        self.population = population
        self._exploit = exploit
        self._room = room

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self.population.add(trial.config["trial"], trial.config["params"])

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        number, step = trial.config["trial"], result.get(STEP)
        if step is None or END in trial.config or not self.population.is_due(number, step):
            return TrialScheduler.CONTINUE
        exploit = self.population.judge(number, step, result[VALUE])
        if exploit is not None and self._exploit(exploit):
            self.population.done(exploit)
        others = [other for other in tune_controller.get_trials() if other is not trial]
        waiting = any(other.status in (Trial.PENDING, Trial.PAUSED) for other in others)
        full = sum(other.status == Trial.RUNNING for other in others) + 1 >= self._room
        return TrialScheduler.PAUSE if waiting and full else TrialScheduler.CONTINUE

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Those that have not begun first, then who is least far."""
        waiting = [t for t in tune_controller.get_trials() if t.status in (Trial.PENDING, Trial.PAUSED)]
        return min(waiting, key=lambda t: (t.last_result or {}).get(STEP, 0), default=None)
