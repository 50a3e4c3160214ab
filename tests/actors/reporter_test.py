"""Reports are written off the training thread, and none is lost; speed is measured from the first step on."""

import json
import threading
from concurrent.futures import Future
from unittest import mock

import pytest

from raylingvo.actors import reporter as reporter_module
from raylingvo.actors.reporter import Reporter, StepClock
from raylingvo.monitor.metrics_log import MetricsLog, read_metrics


def test_reports_are_on_disk_when_it_is_closed(tmp_path):
    reporter = Reporter(tmp_path, last_step=0)
    for step in (10, 20):
        reporter.report(step, {"loss": 1 / step})
    reporter.close()
    records = read_metrics(tmp_path)
    assert [(record["step"], record["loss"]) for record in records] == [(10, 0.1), (20, 0.05)]
    assert reporter.last == {"step": 20, "time": records[1]["time"], "metrics": {"loss": 0.05}}


def test_a_report_does_not_wait_for_the_disk(tmp_path):
    go_on = threading.Event()
    write = MetricsLog.write

    def slow_write(*args, **kwargs):
        assert go_on.wait(60)
        write(*args, **kwargs)

    with mock.patch.object(MetricsLog, "write", slow_write):
        reporter = Reporter(tmp_path, last_step=0)
        for step in (10, 20, 30):
            reporter.report(step, {"loss": 0.1})  # would not return if it waited
        assert read_metrics(tmp_path) == []
        assert [report["step"] for report in reporter.unwritten()] == [10, 20, 30]
        go_on.set()
        reporter.close()
    assert [report["step"] for report in reporter.unwritten()] == [30]  # its metrics are what the run last said
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 30]


def test_only_so_many_reports_wait_for_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(reporter_module, "_MAX_PENDING", 3)
    go_on, done_when_asked = threading.Event(), []
    write, result = MetricsLog.write, Future.result

    def slow_write(*args, **kwargs):
        assert go_on.wait(60)
        write(*args, **kwargs)

    def waited_for(self):
        done_when_asked.append(self.done())
        go_on.set()
        return result(self)

    monkeypatch.setattr(MetricsLog, "write", slow_write)
    monkeypatch.setattr(Future, "result", waited_for)
    reporter = Reporter(tmp_path, last_step=0)
    for step in (1, 2, 3):
        reporter.report(step, {})
    assert done_when_asked == []
    reporter.report(4, {})
    assert done_when_asked[0] is False
    reporter.close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("call", ["report", "close"])
def test_the_next_call_raises_the_error_of_a_write(tmp_path, call):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    reporter = Reporter(tmp_path, last_step=0)
    with mock.patch.object(MetricsLog, "write", fail):
        reporter.report(10, {"loss": 0.1})
        failed = threading.Event()
        reporter._executor.submit(failed.set)  # in its only thread, hence after the write
        assert failed.wait(60)
        with pytest.raises(OSError, match="disk full"):
            reporter.report(20, {"loss": 0.1}) if call == "report" else reporter.close()
    reporter.close()


def test_resuming_writes_what_did_not_reach_the_disk(tmp_path):
    with MetricsLog(tmp_path) as log:
        for step in (10, 40):  # 40 was reported by a Trainer that died after it
            log.write(step, {"loss": 0.1}, time=1.0)
    reports = [{"step": step, "time": 123.0, "metrics": {"loss": 0.5}} for step in (20, 30)]
    for _ in range(2):  # the second time they are there
        reporter = Reporter(tmp_path, last_step=30, reports=reports)
        assert reporter.last == reports[-1]
        reporter.close()
        assert [(r["step"], r["time"]) for r in read_metrics(tmp_path)] == [(10, 1.0), (20, 123.0), (30, 123.0)]


@pytest.fixture
def clock():
    """A StepClock of batches of 8, and the seconds that `time.monotonic` tells it."""
    now = [1000.0]
    with mock.patch.object(reporter_module.time, "monotonic", lambda: now[0]):
        yield StepClock(), now


def test_speed_counts_from_the_end_of_the_first_step(clock):
    clock, now = clock
    assert clock.rates(0) == {}
    assert clock.overall(0) == {"steps_per_second": None, "examples_per_second": None}
    now[0] += 50  # compilation
    clock.first_step(101)
    assert clock.first_step_time is not None
    assert clock.rates(101) == {}
    now[0] += 2
    clock.took(80)
    clock.waited(0.5)
    expected = {"steps_per_second": 5.0, "examples_per_second": 40.0}
    assert clock.rates(111) == expected | {"input_wait_fraction": 0.25}
    assert clock.lap(111) == expected | {"input_wait_fraction": 0.25}
    assert clock.rates(111) == {}
    now[0] += 1
    clock.took(160)
    assert clock.lap(131) == {"steps_per_second": 20.0, "examples_per_second": 160.0, "input_wait_fraction": 0.0}
    assert clock.overall(131) == {"steps_per_second": 10.0, "examples_per_second": 80.0}


def test_waiting_for_more_than_the_whole_time_is_all_of_it(clock):
    clock, now = clock
    clock.first_step(1)
    now[0] += 1
    clock.waited(1.1)
    assert clock.rates(2)["input_wait_fraction"] == 1.0


def test_a_lap_with_snapshots_tells_their_mean_time(clock):
    clock, now = clock
    clock.first_step(1)
    for seconds in (0.5, 1.5):
        clock.copied(seconds)
    now[0] += 4
    assert clock.lap(2)["snapshot_seconds"] == 1.0
    now[0] += 4
    assert "snapshot_seconds" not in clock.lap(3)
