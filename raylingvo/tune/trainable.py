"""What Ray Tune runs: an actor that works on one trial after the other, with the same processes for their roles."""

from __future__ import annotations

from typing import Any, cast

from ray import tune

from raylingvo.actors.workers import Workers
from raylingvo.tune.trial_run import Home, TrialRun

STEP = "step"  # of training, by which schedulers count
VALUE = "value"  # of the metric
END = "end"


class TrialActor(tune.Trainable):
    """Reports each evaluation as a result {STEP, VALUE}; the last result is `done` and has END, the fields of `End`.

    The config is {"trial": number, "params": {key: value}}. A trial of which all is known has besides "history",
    [(step, value), ...], and `end`: nothing is run, and the same is reported as when it was.
    """

    def setup(self, config: dict[str, Any], home: Home | None = None) -> None:
        self._home = cast(Home, home)
        self._base = self._home.order.take_place()
        self._workers = Workers(keep=True)
        self._run: TrialRun | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._leave()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self._past:
            step, value = self._past.pop(0)
            return {STEP: step, VALUE: value}
        if self._run is None:
            return {**self._last, "done": True, END: self._end}
        report = self._run.next()
        if report.value is not None:
            self._last = {STEP: report.step, VALUE: report.value}
        if report.end is not None:
            return {**self._last, "done": True, END: list(report.end)}
        return self._last

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Asked for when the trial is to pause: its folder has what it goes on from."""
        if self._run is not None:
            self._run.pause("paused by the scheduler")
            self._run = None

    def load_checkpoint(self, checkpoint: Any) -> None:
        """There is nothing but the trial's folder."""

    def cleanup(self) -> None:
        self._leave()
        self._workers.close()

    def _begin(self, config: dict[str, Any]) -> None:
        self._last: dict[str, Any] = {}
        self._end = config.get(END)
        self._past = [tuple(point) for point in config.get("history", ())]
        if self._past:
            self._last = dict(zip((STEP, VALUE), self._past[-1], strict=True))
        if self._end is None:
            self._run = TrialRun(self._home, self._base, self._workers, config["trial"], config["params"])

    def _leave(self) -> None:
        """The trial is over here: its run has been told so, or has ended."""
        if self._run is not None:
            self._run.wait()
            self._run = None
