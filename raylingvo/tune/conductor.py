"""The conductor of a sweep: hears of trials from Tune and from themselves, keeps the book, and ends the sweep."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray import tune
from ray.exceptions import GetTimeoutError, RayError
from ray.tune.experiment import Trial
from ray.tune.stopper import NoopStopper

from raylingvo.actors.calls import fetch
from raylingvo.actors.within import Adopted, Command
from raylingvo.monitor import text
from raylingvo.tune.book import Book
from raylingvo.tune.population import Exploit, Population
from raylingvo.tune.record import ENDED, SweepStatus
from raylingvo.tune.request import Request
from raylingvo.tune.schedulers import AshaScheduler
from raylingvo.tune.trainable import END, RAW, STEP
from raylingvo.tune.trial_run import End

_LAST_WORDS_SECONDS = 60.0  # how long trials are listened to when Tune is done with them


class Conductor(tune.Callback):
    """Tune's callbacks, its stopper, and the other end of the hub. For the thread in which Tune runs."""

    def __init__(self, request: Request, book: Book, asked_to_stop: Callable[[], str | None]):
        self._request = request
        self._book = book
        self._asked_to_stop = asked_to_stop
        self._interrupted: str | None = None
        self._too_many: str | None = None
        self.wrong_metric: str | None = None  # what a role has against the metric that is asked for
        self._at_work: set[int] = set()  # whose run has begun, and not told that it has ended
        self._left: set[int] = set()  # of those, the ones that Tune is done with: it would not tell if they died
        self._lost: set[int] = set()  # those whose process has died since they began
        self._num_news = 0
        self._news: ray.ObjectRef | None = None
        self.stopper = _Stopper(self)

    def open(self, hub: Any, population: Population | None = None, halving: AshaScheduler | None = None) -> None:
        """The trials that `hub` is for are about to run. population, halving: of the schedulers that have them."""
        self._hub = hub
        self._population = population
        self._halving = halving
        self._news = hub.news.remote(0)

    def is_over(self) -> bool:
        """Whether nothing more is to begin."""
        return self._interrupted is not None

    def is_quiet(self) -> bool:
        """Whether nothing more is to begin, and what has begun has ended."""
        return self.is_over() and not self._at_work

    def exploit(self, exploit: Exploit) -> bool:
        """Lets a trial have the weights of another; whether they are there."""
        origin = {"from_trial": exploit.donor}
        command = Command("adopt", params=exploit.params, decided=time.time(), origin=origin)
        try:
            return fetch(self._hub.exploit.remote(exploit.taker, exploit.donor, command))
        except GetTimeoutError:  # of a store that has died, say
            return False

    def ending(self) -> tuple[SweepStatus, str]:
        """How the sweep has ended, and why. For the time after `close`."""
        if self._too_many is not None:
            return "failed", self._too_many
        if self._interrupted is not None and not self._book.all_ended():
            return "interrupted", self._interrupted
        return self._book.outcome()

    # -- Tune's callbacks ----------------------------------------------------------------------------------------------

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        number = trial.config["trial"]
        if END in trial.config:
            return  # only repeated for Tune
        self._book.add(number, trial.config["params"])
        self._await_end(number)  # of the time before a pause: heard later, it would be taken for that of this one
        self._at_work.add(number)
        self._left.discard(number)
        self._book.update(number, status="running", stop_reason=None, error=None)
        self._book.save()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if END not in trial.config and result.get(RAW) is not None:
            self._book.value(trial.config["trial"], result[STEP], result[RAW])

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        number = trial.config["trial"]
        if END in trial.config or (trial.last_result or {}).get(END) is not None:
            return  # it has ended by itself
        if self._book.trials[number].status in ENDED:
            return  # it had, before it paused
        self._left.add(number)
        self._give_up_lost(number)
        step = (trial.last_result or {}).get(STEP, 0)
        if step >= self._request.max_steps:
            return  # it ends by itself
        reason = f"stopped by {self._request.options.scheduler} at step {step}"
        self._book.update(number, status="stopped", stop_reason=reason)
        if number in self._at_work:
            self._hub.command.remote(number, Command("end", reason=reason))
        self._book.save()

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        number = trial.config["trial"]
        self._at_work.discard(number)
        self._book.add(number, trial.config["params"])
        if END not in trial.config:
            self._book.update(number, status="pending")
        self._book.event(f"trial {number}: its process died; it goes on in another")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        number = trial.config["trial"]
        self._at_work.discard(number)
        self._book.add(number, trial.config["params"])
        died = text.count(trial.run_metadata.num_failures, "time")
        self._fail(number, f"its process died {died}, last of: {_first_line(trial.get_error())}")

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._listen(0)
        if self._interrupted is None and (reason := self._asked_to_stop()) is not None:
            self._interrupt(reason)
        self._book.show()

    # -- the hub's news ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Listens until all trials have told how they ended."""
        self._await_end(*self._at_work)
        ray.kill(self._hub)

    def _await_end(self, *numbers: int) -> None:
        """Listens until these trials, as far as they are at work, have told how they ended, or cannot any more."""
        deadline = time.monotonic() + _LAST_WORDS_SECONDS
        while (self._at_work - self._lost).intersection(numbers) and time.monotonic() < deadline:
            self._listen(0.2)

    def _listen(self, timeout: float) -> None:
        assert self._news is not None
        ready, _ = ray.wait([self._news], timeout=timeout)
        if not ready:
            return
        for news in fetch(self._news):
            self._num_news += 1
            self._hear(news)
        self._news = self._hub.news.remote(self._num_news)

    def _hear(self, news: Mapping[str, Any]) -> None:
        number = news["trial"]
        if "phase" in news:
            self._book.running(number, **news)
        if "adopted" in news:
            self._on_adopted(number, news["adopted"])
        if "began" in news:
            self._lost.discard(number)
        if "lost" in news:
            self._lost.add(number)
            self._give_up_lost(number)
        if "ended" in news:
            self._at_work.discard(number)
            self._book.not_running(number)
            self._on_end(number, End(*news["ended"]), news["seconds"])
        if "untold" in news and self._halving is not None:
            self._book.update(number, status="paused")
            self._halving.release(number)

    def _give_up_lost(self, number: int) -> None:
        """A trial that nobody starts again is not waited for."""
        if number in self._left & self._lost & self._at_work:
            self._at_work.discard(number)
            self._book.not_running(number)
            self._book.event(f"trial {number}: its process died before its last evaluation")

    def _on_adopted(self, number: int, adopted: Sequence[Adopted]) -> None:
        """All that a trial has taken from others, as it knows itself: it may have forgotten some when it was killed."""
        trial = self._book.trials[number]
        params = dict(trial.changes[0]["before"] if trial.changes else trial.params)
        changes = []
        for taken in adopted:
            changes.append({"step": taken["step"], **taken["origin"], "params": taken["params"], "before": params})
            params = {**params, **taken["params"]}
        forgotten = next((old for i, old in enumerate(trial.changes) if changes[i : i + 1] != [old]), None)
        if forgotten is not None:  # evaluations since then are of weights that are gone
            history = tuple(point for point in trial.history if point[0] <= forgotten["step"])
            self._book.update(number, history=history)
        self._book.update(number, params=params, changes=tuple(changes))
        if self._population is not None:
            self._population.now(number, params)

    def _on_end(self, number: int, end: End, seconds: float) -> None:
        trial = self._book.trials[number]
        step = max(trial.step, end.step)
        self._book.update(number, step=step, seconds=trial.seconds + seconds)
        if end.status == "failed":
            self._fail(number, end.reason)
            if self._halving is not None:
                self._halving.give_up(number)
            if end.no_metric and not self.is_over():
                self.wrong_metric = end.reason.replace("train.checkpoints.best.metric", "--metric")
                self._interrupt(self.wrong_metric)
        elif trial.status != "stopped":
            status = end.status
            if end.step < 0:
                status = "pending"  # it has not begun
            elif status == "interrupted" and self._interrupted is None:
                status = "paused"
            self._book.update(number, status=status, stop_reason=end.reason)
        self._book.save()

    def _fail(self, number: int, error: str) -> None:
        self._book.update(number, status="failed", error=" ".join(error.split()))
        self._book.save()
        failed, most = self._book.count("failed"), self._request.options.max_failures
        if most is not None and failed > most and self._too_many is None:
            self._too_many = f"{text.count(failed, 'trial')} failed, the last of {error}"
            self._interrupt(f"more than {most} trials have failed")

    def _interrupt(self, reason: str) -> None:
        self._interrupted = reason
        self._book.event(f"stopping: {reason}; trials that run write a checkpoint")
        self._hub.interrupt.remote(reason)


class _Stopper(tune.Stopper):
    """Ends Tune when the sweep is to stop and its trials have heard of it."""

    def __init__(self, conductor: Conductor):
        self._conductor = conductor

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def __reduce__(self) -> Any:
        """For the record that Tune (2.60) writes of itself at the end, which nobody reads."""
        return NoopStopper, ()

    def stop_all(self) -> bool:
        return self._conductor.is_quiet()


def _first_line(error: Exception | None) -> str:
    try:
        return (str(error).strip().splitlines() or [""])[0]
    except RayError:
        return ""
