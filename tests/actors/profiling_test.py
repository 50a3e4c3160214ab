"""Profiles of a Trainer that goes on: of a plain thread's, and of a run's through its driver."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from command_line import Command, command_of
from running import SECONDS, Watcher
from toy_run import arguments, experiment

from raylingvo.actors import detached, profiling
from raylingvo.errors import RequestError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command_of(monkeypatch, capsys)


class Steps:
    """A Trainer that takes a step whenever it is asked where it is, until `end`."""

    def __init__(self, end: int, state: str = "training") -> None:
        self._step, self._end, self._state = 4, end, state

    def status(self) -> dict[str, Any]:
        jax.block_until_ready(jnp.ones((8, 8)) @ jnp.ones((8, 8)))
        self._step += 1
        return {"state": self._state if self._step < self._end else "stopping", "step": self._step}


def _trace(folder: str) -> str:
    (file,) = Path(folder).glob("*.trace.json.gz")
    return gzip.decompress(file.read_bytes()).decode()


def test_so_many_steps_are_profiled(tmp_path: Path) -> None:
    for _ in range(2):  # within a second, the other takes the place of the first
        taken = profiling.take(tmp_path, 3, Steps(100).status)
        assert (taken["from_step"], taken["steps"]) == (6, 3)
        assert Path(taken["folder"]).is_relative_to(tmp_path / "plugins" / "profile")
        assert list(Path(taken["folder"]).glob("*.xplane.pb"))
        assert "PjitFunction(matmul)" in _trace(taken["folder"])


def test_a_profile_ends_with_training(tmp_path: Path) -> None:
    assert profiling.take(tmp_path, 1000, Steps(12).status)["steps"] == 6


def test_a_profile_does_not_last_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "LONGEST_SECONDS", 0.0)
    assert profiling.take(tmp_path, 1000, Steps(10**9).status)["steps"] < 1000


def test_who_cannot_be_profiled_says_so(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^the Trainer is compiling: there are no steps to profile$"):
        profiling.take(tmp_path, 3, Steps(100, "compiling").status)

    def another() -> dict[str, Any]:
        with pytest.raises(RequestError, match=r"^a profile of this run is being taken already$"):
            profiling.take(tmp_path, 3, Steps(100).status)
        return steps.status()

    steps = Steps(100)
    asked = iter([steps.status])
    profiling.take(tmp_path, 3, lambda: next(asked, another)())
    assert profiling.take(tmp_path, 3, Steps(100).status)["steps"] == 3


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_run_in_the_cluster_is_profiled_and_goes_on(command: Command, tmp_path: Path) -> None:
    wanted = arguments(experiment(max_steps=10_000_000), tmp_path)
    run = command(*wanted, "--detach").json["run"]
    view = Watcher()
    with detached.open_run(run, None) as found:
        try:
            _wait_until_it_trains(found)
            _wait_until_exported(command, run, {"step", "learning_rate", "elapsed_seconds", "store_bytes"})
            assert "learning_rate" in command("status", run).out
            taken = command("profile", run, "--steps", 20, "--json").json
            assert taken["steps"] >= 20
            assert Path(taken["folder"]).is_relative_to(tmp_path / "run" / "train" / "plugins" / "profile")
            assert "traceEvents" in json.loads(_trace(taken["folder"]))
            said = command("profile", tmp_path / "run", "--steps", 1)
            assert said.status == 0
            assert said.out.startswith("profile of steps ")
        finally:
            ending = found.stop("enough", view)
    assert ending.result["step"] > taken["from_step"] + taken["steps"]
    over = f"raylingvo: run {run} is over (interrupted): there are no steps to profile\n"
    assert command("profile", tmp_path / "run") == (2, "", over)


def _wait_until_it_trains(found: detached.RunInSight) -> None:
    refused: set[str] = set()
    for _ in range(10 * SECONDS):
        try:
            found.profile(1)
        except RequestError as error:
            refused.add(str(error))
        else:
            assert all("there are no steps to profile" in message for message in refused)
            return
    pytest.fail(f"it does not train: {refused}")


def _wait_until_exported(command: Command, run: str, names: set[str]) -> None:
    """The driver asks the roles about once a second."""
    end = time.monotonic() + SECONDS
    shown: set[str] = set()
    while not names <= shown and time.monotonic() < end:
        shown = {sample["name"] for sample in command("status", run, "--json").json.get("samples", ())}
    assert names <= shown
