"""How roles export what they know, without Ray's part of it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import toy

from raylingvo.actors import metrics, remote
from raylingvo.actors.driver import Order
from raylingvo.actors.snapshot_store import SnapshotStore
from raylingvo.actors.store_actor import StoreActor
from raylingvo.experiment import RoleResources
from raylingvo.monitor.exported import BY_NAME, Sample

SECONDS = 200


class Recorder:
    """In place of Ray's metrics: what was set, by name, with its tags."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: list[tuple[str, float, dict[str, str]]] = []
        self.changed = threading.Condition()
        monkeypatch.setattr(metrics, "_metric", self._metric)

    def _metric(self, name: str) -> Any:
        recorder = self

        class Metric:
            def set(self, value: float, tags: dict[str, str]) -> None:
                assert tags.keys() == set(BY_NAME[name].tags)
                with recorder.changed:
                    recorder.found.append((name, value, tags))
                    recorder.changed.notify_all()

            inc = set

        return Metric()

    def values(self, name: str) -> list[float]:
        return [value for found, value, _ in self.found if found == name]

    def wait_for(self, condition: Callable[[], Any]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, SECONDS)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def test_what_still_holds_is_set_again_and_again(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    monkeypatch.setattr(metrics, "SECONDS", 0.001)
    values = iter(range(1000_000))
    with metrics.exported("run-1", lambda: [Sample("step", next(values), "trainer", "train")]):
        recorder.wait_for(lambda: len(recorder.found) >= 3)
    number = len(recorder.found)
    assert recorder.values("step") == list(range(number))
    assert recorder.found[0][2] == {"run": "run-1", "role": "trainer", "dataset": "train"}
    assert not [thread for thread in threading.enumerate() if thread.name == "metrics"]


def test_what_goes_wrong_there_is_logged_and_no_more(
    monkeypatch: pytest.MonkeyPatch, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metrics, "SECONDS", 0.001)
    failed = threading.Event()

    def current() -> list[Sample]:
        failed.set()
        raise RuntimeError("no status")

    with caplog.at_level(logging.ERROR), metrics.exported("run-1", current):
        assert failed.wait(SECONDS)
    assert [record.message for record in caplog.records] == ["metrics are not exported any more"]
    assert recorder.found == []


def test_the_switch_turns_all_of_it_off(monkeypatch: pytest.MonkeyPatch, recorder: Recorder, tmp_path: Path) -> None:
    monkeypatch.setenv(metrics.SWITCH, "0")
    with metrics.exported("run-1", lambda: pytest.fail("nobody should ask")):
        pass
    metrics.export("run-1", [Sample("step", 1, "trainer")])
    of_run = metrics.RunMetrics("run-1", "train", tmp_path)
    of_run.update(1, training=True)
    of_run.restarted("Trainer", "died")
    assert recorder.found == []
    assert metrics.environment() == {metrics.SWITCH: "0"}


def test_the_driver_knows_how_old_step_and_checkpoint_are(recorder: Recorder, tmp_path: Path) -> None:
    of_run = metrics.RunMetrics("run-1", "train", tmp_path)
    of_run._due = lambda: True
    of_run._started -= 1000
    of_run.update(5, training=True)
    of_run._step_changed -= 100
    of_run.update(5, training=True)
    of_run.update(6, training=True)
    first, second, third = recorder.values("step_age_seconds")
    assert max(first, third) < 50
    assert 100 <= second < 150
    assert all(1000 <= age < 1050 for age in recorder.values("checkpoint_age_seconds"))  # there is none

    recorder.found.clear()
    folder = tmp_path / "train" / "checkpoints"
    for name, age in (("10", 300), ("20", 200), ("30.unfinished", 1)):
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (of_run._started + 1000 - age,) * 2)
    of_run.update(6, training=True)
    (age,) = recorder.values("checkpoint_age_seconds")
    assert 200 <= age < 250

    recorder.found.clear()
    of_run.update(6, training=False)  # readers are still at work
    assert [name for name, *_ in recorder.found] == ["elapsed_seconds"]


def test_a_checkpoint_of_an_earlier_start_is_as_old_as_this_start(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "train" / "checkpoints" / "10").mkdir(parents=True)
    os.utime(tmp_path / "train" / "checkpoints" / "10", (0, 0))
    metrics.RunMetrics("run-1", "train", tmp_path).update(10, training=True)
    (age,) = recorder.values("checkpoint_age_seconds")
    assert age < 50


def test_a_checkpoint_that_goes_meanwhile_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, recorder: Recorder, tmp_path: Path
) -> None:
    folder = tmp_path / "train" / "checkpoints"
    for name in ("10", "20", "30"):
        (folder / name).mkdir(parents=True)
    monkeypatch.setattr(Path, "iterdir", lambda _: iter([folder / name for name in ("5", "10", "15", "30", "40")]))
    of_run = metrics.RunMetrics("run-1", "train", tmp_path)
    of_run._started -= 1000
    of_run.update(30, training=True)
    (age,) = recorder.values("checkpoint_age_seconds")
    assert age < 50


def test_a_disk_that_refuses_is_logged_once_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, recorder: Recorder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(Path, "iterdir", refuse)
    of_run = metrics.RunMetrics("run-1", "train", tmp_path)
    of_run._due = lambda: True
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            of_run.update(30, training=True)
    assert [record.message for record in caplog.records] == ["the age of the newest checkpoint is not known"]
    assert recorder.values("checkpoint_age_seconds") == []
    assert len(recorder.values("step_age_seconds")) == 2


def test_what_a_command_says_of_metrics_reaches_a_driver_in_the_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = {metrics.SWITCH: "0", "RAYLINGVO_PEAK_FLOPS": "2e9"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    cluster: Any = None
    order = Order.of_this_process("run-1", toy.experiment(), tmp_path, 0.0, cluster)
    assert given.items() <= order.environment.items()


def test_what_a_command_says_of_metrics_reaches_the_store(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    """Which may be in a process that was started with another environment."""

    class Actors:
        def options(self, **_: Any) -> Actors:
            return self

        def remote(self, *args: Any) -> StoreActor:
            monkeypatch.setenv(metrics.SWITCH, "1")  # there
            return StoreActor(*args)

    def started(switch: str) -> StoreActor:
        monkeypatch.setenv(metrics.SWITCH, switch)
        return remote.start_store(job, RoleResources(), max_bytes=1, max_count=1)

    monkeypatch.setattr(remote.ray, "remote", lambda _: Actors())
    job: Any = SimpleNamespace(run="run-1")
    asyncio.run(started("0").status())
    assert recorder.found == []
    asyncio.run(started("1").status())
    assert recorder.values("store_bytes") == [0]


def test_the_store_says_since_when_a_reader_works() -> None:
    store = SnapshotStore(max_bytes=1000, max_count=10)
    store.register("Evaler(test)", "latest")

    def since() -> float | None:
        return store.status()["readers"]["Evaler(test)"]["working_since"]

    store.add(10, "weights", 1, time=1000.0)
    assert since() is None
    taken = store.take("Evaler(test)")
    assert taken is not None
    store.add(20, "weights", 1, time=2000.0)
    assert since() == taken.time == 1000.0  # which the reader is given, too
    store.done("Evaler(test)", 10)
    assert since() is None
    store.take("Evaler(test)")
    assert since() == 2000.0
    store.died("Evaler(test)")
    assert since() is None


def test_restarts_have_their_cause(recorder: Recorder, tmp_path: Path) -> None:
    of_run = metrics.RunMetrics("run-1", "train", tmp_path)
    of_run.restarted("Trainer", "lost hosts")
    of_run.restarted("Decoder(dev)", "error")
    of_run.restarted("SnapshotStore", "died")
    assert [(tags["role"], tags["dataset"], tags["cause"]) for _, _, tags in recorder.found] == [
        ("trainer", "train", "lost hosts"),
        ("decoder", "dev", "error"),
        ("store", "", "died"),
    ]


def test_sometimes_is_not_always(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now)
    due = metrics.Sometimes(5.0)
    assert [due(), due()] == [True, False]
    now += 4.9
    assert not due()
    now += 0.2
    assert [due(), due()] == [True, False]
