"""Profiles of a Trainer that goes on, which here is a plain thread."""

from __future__ import annotations

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from running import SECONDS
from trainers import EXPERIMENT, Killed, Store, train

from raylingvo.actors import profiling
from raylingvo.errors import RequestError


@jax.jit
def _long_step(x: jax.Array) -> jax.Array:
    for _ in range(8):
        x = jnp.tanh(x @ x)
    return x


class Loop:
    """A thread that takes steps as the Trainer does: dispatches one, and then waits for the one before."""

    def __init__(self, end: int, size: int = 8) -> None:
        self.done = profiling.DoneSteps()
        self.results: dict[int, jax.Array] = {}
        self._end, self._step, self._state = end, 0, "training"
        self._start = jnp.eye(size)
        jax.block_until_ready(_long_step(self._start))  # compiled
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Loop:
        self._thread.start()
        self.done.wait(1, SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._end = 0
        self._thread.join()

    def status(self) -> dict[str, Any]:
        return {"state": self._state, "step": self._step}

    def take(self, folder: Path, steps: int) -> dict[str, Any]:
        return profiling.take(folder, steps, self.status, self.done)

    def _run(self) -> None:
        while self._step < self._end:
            self.results[self._step + 1] = _long_step(self._start)
            self._step += 1
            if self._step > 1:
                jax.block_until_ready(self.results[self._step - 1])
                self.done.reach(self._step - 1)
        self._state = "stopping"
        jax.block_until_ready(self.results)
        self.done.reach(self._step)
        self.done.end()


def _trace(folder: str) -> str:
    (file,) = Path(folder).glob("*.trace.json.gz")
    return gzip.decompress(file.read_bytes()).decode()


def test_the_work_of_all_steps_is_in_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one has been dispatched long before the device is done with it."""
    ready: list[dict[int, bool]] = []
    begun: list[int] = []
    start, stop = jax.profiler.start_trace, jax.profiler.stop_trace

    def start_trace(*args: Any, **options: Any) -> None:
        start(*args, **options)
        begun.append(loop.status()["step"])

    def stop_trace() -> None:
        ready.append({step: result.is_ready() for step, result in list(loop.results.items())})
        stop()

    monkeypatch.setattr(jax.profiler, "start_trace", start_trace)
    monkeypatch.setattr(jax.profiler, "stop_trace", stop_trace)
    with Loop(10**9, size=500) as loop:
        taken = loop.take(tmp_path, 3)
    begin, steps = taken["from_step"], taken["steps"]
    assert begin > begun[0]  # what comes after had not been begun
    assert steps >= 3
    assert all(ready[0][step] for step in range(begin + 1, begin + steps + 1))


def test_so_many_steps_are_profiled(tmp_path: Path) -> None:
    with Loop(10**9) as loop:
        for _ in range(2):  # within a second, the other takes the place of the first
            taken = loop.take(tmp_path, 3)
            assert taken["steps"] >= 3
            assert Path(taken["folder"]).is_relative_to(tmp_path / "plugins" / "profile")
            assert list(Path(taken["folder"]).glob("*.xplane.pb"))
            assert "PjitFunction(_long_step)" in _trace(taken["folder"])


def test_a_profile_ends_with_training(tmp_path: Path) -> None:
    with Loop(10**9) as loop:
        ending = threading.Timer(0.1, setattr, (loop, "_end", 0))
        ending.start()
        taken = loop.take(tmp_path, 10**9)
    assert taken["from_step"] + taken["steps"] == loop.status()["step"]


def test_a_profile_does_not_last_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "LONGEST_SECONDS", 0.0)
    with Loop(10**9) as loop:
        assert loop.take(tmp_path, 10**9)["steps"] < 10**9


def test_who_cannot_be_profiled_says_so(tmp_path: Path) -> None:
    done = profiling.DoneSteps()
    with pytest.raises(RequestError, match=r"^the Trainer is compiling: there are no steps to profile$"):
        profiling.take(tmp_path, 3, lambda: {"state": "compiling", "step": 0}, done)

    def another() -> dict[str, Any]:
        with pytest.raises(RequestError, match=r"^a profile of this run is being taken already$"):
            loop.take(tmp_path, 3)
        return loop.status()

    with Loop(10**9) as loop:
        asked = iter([loop.status])
        profiling.take(tmp_path, 3, lambda: next(asked, another)(), loop.done)
        assert loop.take(tmp_path, 3)["steps"] >= 3


def test_who_waits_hears_of_it_however_it_ends() -> None:
    done = profiling.DoneSteps()
    done.reach(5)
    done.wait(5, SECONDS)  # it is already
    with ThreadPoolExecutor(2) as others:
        early, late = others.submit(done.wait, 6, SECONDS), others.submit(done.wait, 100, SECONDS)
        done.reach(6)
        early.result(SECONDS)
        assert not late.done()
        done.end()
        late.result(SECONDS)
    done.wait(100, SECONDS)  # none will follow
    assert done._waiting == []


def test_the_trainer_counts_what_is_done(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def look(trainer: Any) -> None:
        seen.append((trainer.done.last, trainer.status()["step"]))

    def fail(trainer: Any) -> None:
        look(trainer)
        raise Killed

    store = Store()
    train(EXPERIMENT, tmp_path / "whole", store, after=6, do=look)
    assert seen == [(4, 5)]  # one step ahead
    assert store.trainer.done.last == EXPERIMENT.train.max_steps
    store = Store()
    with pytest.raises(Killed):
        train(EXPERIMENT, tmp_path / "failed", store, after=6, do=fail)
    store.trainer.done.wait(100, SECONDS)  # returns, though training has failed
