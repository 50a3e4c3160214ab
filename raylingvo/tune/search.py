"""Which trials a sweep has: those of its record first, as they were, and then those that a searcher suggests."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from ray.tune.search import Searcher

from raylingvo.errors import RequestError
from raylingvo.tune import spaces
from raylingvo.tune.record import ENDED, Trial
from raylingvo.tune.spaces import Space
from raylingvo.tune.trainable import END, RAW, VALUE


class Source(abc.ABC):
    """Where parameters of new trials come from."""

    @property
    def size(self) -> int | None:
        """The number of trials; None: as many as are asked for."""
        return None

    @abc.abstractmethod
    def suggest(self, number: int) -> Mapping[str, Any]:
        """The parameters of trial `number`, which counts from 0: dotted key -> value."""

    def observe(self, number: int, params: Mapping[str, Any], value: float | None) -> None:  # noqa: B027 - most do not care
        """What has come of a trial so far, the last time it is told for good: its best value, None if it has failed."""


class Listed(Source):
    """All parameters are known beforehand: random draws, grids, and their products."""

    def __init__(self, space: Mapping[str, Space], *, search: str, samples: int, seed: int):
        """Raises RequestError if a grid search is asked for over a space that cannot be enumerated."""
        if search == "grid":
            self.params = spaces.all_values(space)
        else:
            grid = spaces.combinations(space)
            draws = [spaces.draws(space, sample, seed) for sample in range(samples)]
            self.params = [
                {key: {**combination, **drawn}[key] for key in space} for drawn in draws for combination in grid
            ]

    @property
    def size(self) -> int:
        """The number of trials: the combinations, or those of the grids times the samples."""
        return len(self.params)

    def suggest(self, number: int) -> Mapping[str, Any]:
        """The parameters of trial `number`, 0 <= number < size."""
        return self.params[number]


class Optuna(Source):
    """Optuna's default sampler (TPE), seeded. It has a study for each suggestion, of what is known by then."""

    def __init__(self, space: Mapping[str, Space], *, mode: str, seed: int):
        """Raises RequestError if Optuna is not installed, or a space is not one of its."""
        try:
            import optuna
        except ImportError as error:
            raise RequestError("--search optuna: Optuna is not installed; run: pip install optuna") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._distributions = {key: _distribution(optuna, key, one) for key, one in space.items()}
        self._optuna = optuna
        self._space, self._seed = space, seed
        self._direction: Literal["minimize", "maximize"] = "minimize" if mode == "min" else "maximize"
        self._known: dict[int, Any] = {}  # trial -> Optuna's record of it

    def suggest(self, number: int) -> Mapping[str, Any]:
        """What the sampler asks to be tried, the same for the same seed and observations."""
        # A seed for each: a sampler that begins anew when the sweep goes on would say the same again.
        (seed,) = np.random.SeedSequence([self._seed, number]).generate_state(1)
        sampler = self._optuna.samplers.TPESampler(seed=int(seed))
        study = self._optuna.create_study(direction=self._direction, sampler=sampler)
        study.add_trials(self._known.values())
        found = study.ask(self._distributions).params
        return {
            key: one.nearest(found[key]) if isinstance(one, spaces.QUniform) else found[key]
            for key, one in self._space.items()
        }

    def observe(self, number: int, params: Mapping[str, Any], value: float | None) -> None:
        """Ignores trials that have failed, as the sampler does."""
        self._known.pop(number, None)
        if value is not None:
            make = self._optuna.trial.create_trial
            self._known[number] = make(params=dict(params), distributions=self._distributions, value=value)


def _distribution(optuna: Any, key: str, space: Space) -> Any:
    made = optuna.distributions
    match space:
        case spaces.Uniform(low, high):
            return made.FloatDistribution(low, high)
        case spaces.LogUniform(low, high):
            return made.FloatDistribution(low, high, log=True)
        case spaces.QUniform(_, _, q):
            low, high = space.ends
            return (made.IntDistribution if isinstance(q, int) else made.FloatDistribution)(low, high, step=q)
        case spaces.RandInt(low, high):
            return made.IntDistribution(low, high - 1)
        case spaces.Choice(items) | spaces.Grid(items):
            return made.CategoricalDistribution(items)
        case _:
            raise RequestError(f"--search optuna: {space} of {key} is not one of its spaces; use uniform or loguniform")


class SweepSearch(Searcher):
    """Tune's side of a source. A suggestion is the config of a TrialActor."""

    def __init__(
        self,
        source: Source,
        recorded: Sequence[Mapping[str, Any]],
        *,
        mode: str,
        samples: int,
        over: Callable[[], bool],
        at_once: int | None = None,
        waits: Callable[[int], bool] | None = None,
        may_begin: Callable[[], bool] = lambda: True,
    ):
        """recorded: configs of trials from earlier starts. over: nothing more is to begin.

        at_once: how many trials there may be that have not ended; None: as many as there is room for. waits: whether
        the scheduler lets a trial wait for others; None: it never does. may_begin: whether it has room for a new one.
        """
        super().__init__(metric=VALUE, mode=mode)
        self._source = source
        self._recorded = recorded
        self._samples = samples
        self._over = over
        self._at_once = at_once
        self._waits = waits
        self._may_begin = may_begin
        self._configs: dict[str, Mapping[str, Any]] = {}
        self._best: dict[str, float] = {}
        self._count = 0

    def suggest(self, trial_id: str) -> Any:
        """The config of the next trial; None while there is no room for it; FINISHED: there are no more."""
        if self._over():
            return Searcher.FINISHED
        if self._count >= self._samples:
            # Where trials wait, Tune is not to close processes that they will need.
            return Searcher.FINISHED if self._waits is None or not self._configs else None
        if not self._may_begin() or (self._at_once is not None and len(self._configs) >= self._at_once):
            return None
        number = self._count
        if number < len(self._recorded):
            config = self._recorded[number]
        else:
            config = {"trial": number, "params": dict(self._source.suggest(number))}
        self._count += 1
        self._configs[trial_id] = config
        return dict(config)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keeps the best value of a trial; what is not finite is none. The source hears of one that waits."""
        self._note(trial_id, result)
        config = self._configs[trial_id]
        if END not in config and self._waits is not None and self._waits(config["trial"]):
            self._source.observe(config["trial"], config["params"], self._best.get(trial_id))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the source what has come of a trial, once; of those of the record it knows already."""
        if trial_id not in self._configs:
            return
        config = self._configs.pop(trial_id)
        if END in config:
            return  # of the record, from which the source has it
        self._note(trial_id, result or {})
        failed = error or (result or {}).get(END, [None])[0] == "failed"
        self._source.observe(config["trial"], config["params"], None if failed else self._best.get(trial_id))

    def _note(self, trial_id: str, result: Mapping[str, Any]) -> None:
        value = result.get(RAW)
        if value is not None and math.isfinite(value):
            best = max if self.mode == "max" else min
            self._best[trial_id] = best(value, self._best.get(trial_id, value))

    def save(self, checkpoint_path: str) -> None:
        """Writes nothing: a sweep goes on from its own record, and Tune is never asked to restore it."""
        # Tune saves every searcher, and warns of those that raise NotImplementedError, as the base class does.


def recorded_config(trial: Trial, params: Mapping[str, Any], *, told_again: bool) -> dict[str, Any]:
    """The config of a trial of the record; `params`: with which it began. It runs unless it has ended.

    told_again: what one that has not ended has reported is reported before it runs, lest it run only to wait.
    """
    config: dict[str, Any] = {"trial": trial.number, "params": dict(params)}
    ended = trial.status in ENDED
    if ended or told_again:
        config["history"] = [list(point) for point in trial.history]
    if ended:
        reason = trial.error if trial.status == "failed" else trial.stop_reason
        config[END] = [trial.status, trial.step, reason or ""]
    return config
