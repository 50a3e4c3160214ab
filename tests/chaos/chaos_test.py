"""Whatever is killed, and however often: a run ends as if nothing had happened, bit for bit.

Roles, the store and the driver are killed with SIGKILL at random times. Only Trainer and store are not killed while the
other has not recovered: what both of them had in memory would be lost, snapshots that wait for an evaluation, say. With
the driver these are lost too: then not every snapshot is evaluated, but none twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import re
import signal
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import toy
from gangs import on
from running import assert_same_end, processes
from toy_run import started
from undisturbed import undisturbed

from raylingvo.experiment import Checkpoints, Experiment, Reading, Snapshots

pytestmark = pytest.mark.ray

SECONDS = 1200.0  # nothing takes so long unless it hangs: the two hosts train for 400 s on two cores
ROLES = ("TrainerActor", "StoreActor", "ReaderActor")  # as their processes are called
# What the driver says when it has heard of the death, and then when the Trainer has a state to lose, and the store has
# again what it had.
DEAD = {"TrainerActor": "the Trainer died", "StoreActor": "the SnapshotStore died"}
RECOVERED = {
    "TrainerActor": re.compile(r"training goes on from step|checkpoint \d+ written"),
    "StoreActor": re.compile("the SnapshotStore has its snapshots again"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlowNumbers(toy.Numbers):
    """Until the file `go` is there a batch takes 10 ms to read, and a process gets 150 at most."""

    go: str

    def open(self) -> SlowRows:
        rows = super().open()
        return SlowRows(rows.x_Nx4, rows.y_N, Path(self.go))


@dataclasses.dataclass(frozen=True, eq=False)
class SlowRows(toy.Rows):
    go: Path
    calls: list[int] = dataclasses.field(default_factory=list)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        self.calls.append(1)
        while not self.go.exists():
            time.sleep(0.01)  # the length of the run, not a wait for anything
            if len(self.calls) < 150:
                break
        return super().take(indices)


def experiment(max_steps: int, hosts: int = 1) -> Experiment:
    reading = Reading(batch_size=20, policy="every", max_restarts=1000)
    plain = toy.experiment(
        max_steps=max_steps,
        report_every_steps=7,
        snapshots=Snapshots(every_steps=20, max_count=4),
        checkpoints=Checkpoints(every_seconds=None, every_steps=50),
        ema_decay=0.9,
        max_restarts=1000,
    )
    latest = dataclasses.replace(reading, policy="latest")
    read = dataclasses.replace(plain, eval={"test": reading}, decode={"test": latest})
    return read if hosts == 1 else on(dataclasses.replace(read, task=toy.Regression(width=8)), hosts=hosts)


class Chaos:
    """A run that is killed in parts, and started again when it was the whole."""

    def __init__(self, wanted: Experiment, folder: Path, seed: int, victims: Sequence[str]):
        self._folder = folder
        self._go = folder / "go"
        data = SlowNumbers(size=wanted.datasets["train"].size, go=str(self._go))  # type: ignore[attr-defined]
        self._wanted = dataclasses.replace(wanted, datasets={**wanted.datasets, "train": data})
        self._victims = victims
        self._random = random.Random(seed)
        self._recovering: set[str] = set()
        self._unheard: set[str] = set()  # died, and the driver has not said so yet
        self._lock = threading.Lock()
        # All times are in those that the Trainer takes to start: where all is slow, it would never come to train.
        self._starts = [4.0]  # seconds; the first one is a guess
        self._begun = 0.0  # when the Trainer was killed, or started for the first time
        self._again = 0.0  # when it is killed once more, if it has not started by then
        self.said: list[str] = []
        self.killed: list[str] = []

    def run(self, kills: int) -> None:
        """Kills that many times, then lets the run finish."""
        while True:
            self._recovering, self._unheard = {"TrainerActor"}, set()
            self._trainer_starts()
            with started(self._wanted, self._folder) as driver:
                listener = threading.Thread(target=self._listen, args=(driver.stderr,))
                listener.start()
                deadline = time.monotonic() + SECONDS
                while len(self.killed) < kills and driver.poll() is None:
                    assert time.monotonic() < deadline, self.said[-20:]
                    time.sleep(self._random.uniform(0.0, statistics.median(self._starts) / 2))  # until it strikes
                    self._kill_one(driver)
                if len(self.killed) == kills:
                    self._go.touch()
                status = driver.wait(SECONDS)
                listener.join(SECONDS)
                assert driver.stdout is not None
                printed = driver.stdout.read()
            if status != -signal.SIGKILL:
                assert status == 0, self.said[-20:]
                assert json.loads(printed)["status"] == "finished"  # of deaths, Ray must print nothing there
                return

    def _kill_one(self, driver: subprocess.Popen[str]) -> None:
        with self._lock:
            found = [(role, process) for role in ROLES for process in processes(driver.pid, kind=role)]
            found.append(("driver", psutil.Process(driver.pid)))
            alive = [(role, process) for role, process in found if self._may_die(role)]
            if not alive:
                return
            role, process = self._random.choice(alive)
            self._recovering |= {role} & RECOVERED.keys()
            self._unheard |= {role} & RECOVERED.keys()
            if role == "TrainerActor":
                self._trainer_starts()
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            process.kill()
            self.killed.append(role)
        if role == "driver":
            driver.wait(SECONDS)

    def _trainer_starts(self) -> None:
        self._begun = time.monotonic()
        self._again = self._begun + statistics.median(self._starts) * self._random.uniform(0.0, 5.0)

    def _may_die(self, role: str) -> bool:
        if role == "TrainerActor" and self._recovering == {role}:
            return time.monotonic() >= self._again
        if role == "driver":  # seldom: all else dies with it
            return role in self._victims and self._random.random() < (0.02 if self._recovering else 0.3)
        return role not in RECOVERED or not self._recovering

    def _listen(self, lines: Iterable[str]) -> None:
        for line in lines:
            with self._lock:
                self.said.append(line.rstrip())
                self._unheard -= {role for role, sign in DEAD.items() if sign in line}
                recovered = {role for role, sign in RECOVERED.items() if sign.search(line)}
                if "TrainerActor" in self._recovering & (recovered - self._unheard):
                    self._starts.append(time.monotonic() - self._begun)
                self._recovering -= recovered - self._unheard


def survives(tmp_path: Path, kills: int, max_steps: int, victims: Sequence[str], hosts: int = 1) -> None:
    seed, wanted = random.randrange(10**6), experiment(max_steps, hosts)
    whole, folder = tmp_path / "whole", tmp_path / "chaos"
    for path in (whole, folder):
        path.mkdir()
    if hosts == 1:
        undisturbed(wanted, whole / "run")
    else:
        with started(wanted, whole) as process:
            _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, said[-2000:]
    print(f"seed {seed}")
    chaos = Chaos(wanted, folder, seed, victims)
    chaos.run(kills)
    print(f"killed {dict(Counter(chaos.killed))}")

    assert len(chaos.killed) == kills
    assert_same_end(wanted, folder / "run", whole / "run")
    for name in ("train", "eval_test", "decode_test"):
        records, expected = (_metrics(path / "run" / name) for path in (folder, whole))
        steps = [record["step"] for record in records]
        assert len(steps) == len(set(steps)), name
        assert steps[-1] == max_steps
        by_step = {record["step"]: record for record in expected}
        # The Decoder's policy is `latest`: which ones it takes is chance.
        assert [record for record in records if record["step"] in by_step] == [
            by_step[step] for step in steps if step in by_step
        ]
        if name == "train":
            assert steps == list(by_step)
        elif name == "eval_test" and "driver" not in chaos.killed:
            # Besides, a snapshot goes with each checkpoint, and these wait for each other.
            assert {*steps} >= {*range(20, max_steps + 1, 20)}


def _metrics(directory: Path) -> list[dict[str, Any]]:
    """All lines of the file, without what depends on the clock."""
    clock = re.compile("time|.*_per_second|.*_seconds|input_wait_fraction")
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not clock.fullmatch(k)} for line in lines]


def test_six_kills_change_nothing(tmp_path: Path) -> None:
    survives(tmp_path, kills=6, max_steps=1000, victims=ROLES)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("victims", [ROLES, (*ROLES, "driver")], ids=["roles", "roles and driver"])
def test_fifty_kills_change_nothing(tmp_path: Path, victims: Sequence[str]) -> None:
    survives(tmp_path, kills=50, max_steps=8000, victims=victims)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_change_nothing_on_two_hosts(tmp_path: Path) -> None:
    """Two hosts of two devices each: one of them is killed, and then both are started again."""
    survives(tmp_path, kills=50, max_steps=8000, victims=ROLES, hosts=2)
