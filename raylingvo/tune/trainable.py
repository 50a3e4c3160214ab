"""What Ray Tune runs: an actor that works on one trial after the other, with the same processes for their roles."""

from __future__ import annotations

import contextlib
import math
from typing import Any, cast

import pyarrow as pa
import ray
from ray import tune

from raylingvo.actors.workers import Workers
from raylingvo.tune.trial_run import Home, TrialRun

# With Tune comes `ray.data`, and with that types of Arrow columns whose metadata are unpickled by whoever reads a file.
for _name in ("pickled_object", "tensor", "tensor_v2", "variable_shaped_tensor"):
    with contextlib.suppress(KeyError):  # Ray may not have it any more
        pa.unregister_extension_type(f"ray.data.arrow_{_name}")

STEP = "step"  # of training, by which schedulers count
RAW = "raw"  # value of the metric; nan before the first one
VALUE = "value"  # the same, as schedulers can compare it
END = "end"


def result(step: int, value: float, mode: str) -> dict[str, Any]:
    """What is told of an evaluation. To schedulers what is not finite is as bad as can be: they take no NaN for it."""
    worst = -1e30 if mode == "max" else 1e30
    return {STEP: step, RAW: value, VALUE: value if math.isfinite(value) else worst}


class TrialActor(tune.Trainable):
    """Reports each evaluation as a `result`; the last result is `done` and has END, the fields of `End`.

    The config is {"trial": number, "params": {key: value}}. One of an earlier start has besides "history", [(step,
    value), ...], which is reported first, and if it had ended END: then nothing is run.
    """

    def setup(self, config: dict[str, Any], home: Home | None = None) -> None:
        self._home = cast(Home, home)
        self._base = self._home.order.take_place()
        self._workers = Workers(keep=True)
        self._run: TrialRun | None = None
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._leave()
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self._past:
            step, value = self._past.pop(0)
            return result(step, value, self._home.mode)
        if self._end is not None:
            return {**self._last, "done": True, END: self._end}
        if self._run is None:
            actor = ray.get_runtime_context().current_actor
            self._run = TrialRun(self._home, self._base, self._workers, actor, *self._trial)
        report = self._run.next()
        if report.value is not None:
            self._last = result(report.step, report.value, self._home.mode)
        if report.end is not None:
            return {**self._last, "done": True, END: list(report.end)}
        return self._last

    def present(self) -> None:
        """Fails if this process has died."""

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Asked for when the trial is to pause: its folder has what it goes on from."""
        reason = "paused by the scheduler"
        if self._run is not None:
            if self._run.pause(reason).status == "finished":
                self._home.hub.tell.remote(self._trial[0], untold=True)  # Tune did not hear of all before it decided
            self._run = None
        else:  # it is known from an earlier start to have come so far
            self._home.hub.tell.remote(self._trial[0], ended=("interrupted", self._last[STEP], reason), seconds=0.0)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """There is nothing but the trial's folder."""

    def cleanup(self) -> None:
        """Tune needs this process no more."""
        self._leave()
        self._workers.close()

    def _take(self, config: dict[str, Any]) -> None:
        """Its run does not begin before the first step: Tune may yet give the trial to another process."""
        self._trial = config["trial"], config["params"]
        self._last = result(0, math.nan, self._home.mode)
        self._end = config.get(END)
        self._past: list[tuple[int, float]] = [(step, value) for step, value in config.get("history", ())]
        if self._past:
            step, value = self._past[-1]
            self._last = result(step, value, self._home.mode)

    def _leave(self) -> None:
        """The trial is over here: its run has been told so, or has ended."""
        if self._run is not None:
            self._run.wait()
            self._run = None
