"""What roles know -> what Prometheus is told."""

from __future__ import annotations

import math

import pytest

from raylingvo.monitor import exported
from raylingvo.monitor.exported import Sample

STATUS = {"step": 7, "max_steps": 60, "skipped_updates": 1, "rollbacks": 0, "bad_records": 2}


def _by_name(samples: list[Sample]) -> dict[str, float]:
    return {sample.name: sample.value for sample in samples}


def test_names_are_those_that_prometheus_takes() -> None:
    assert len(exported.BY_NAME) == len(exported.EXPORTED)
    for metric in exported.EXPORTED:
        assert metric.full_name.isidentifier()
        assert not metric.full_name.endswith("_total")
        # Prometheus wants the unit in the name, where there is one.
        endings = {"s": "_seconds", "1/s": "_per_second", "bytes": "_bytes"}
        assert metric.full_name.endswith(endings.get(metric.unit, ""))


def test_what_the_trainer_tells() -> None:
    report = {
        "steps_per_second": 2.0,
        "examples_per_second": 16.0,
        "loss": math.nan,
        "learning_rate": 0.1,
        "grad_norm/all": 3.0,
        "grad_norm/hidden/kernel": 9.0,
    }
    samples = exported.trainer_samples("train", STATUS, report, {"mfu": 0.5})
    assert {(sample.role, sample.dataset) for sample in samples} == {("trainer", "train")}
    assert _by_name(samples) == {
        **STATUS,
        "steps_per_second": 2.0,
        "examples_per_second": 16.0,
        "learning_rate": 0.1,
        "grad_norm": 3.0,
        "mfu": 0.5,
    }


def test_of_several_learners_the_largest_is_told() -> None:
    report = {"learning_rate/main": 0.1, "learning_rate/other": 0.3, "grad_norm/all/main": 2.0}
    values = _by_name(exported.trainer_samples("train", STATUS, report, {}))
    assert (values["learning_rate"], values["grad_norm"]) == (0.3, 2.0)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (
            {"tokens": 100.0, "flops": 1e6, "peak": 1e7},
            {"tokens_per_second": 20.0, "flops_per_second": 2e6, "mfu": 0.2},
        ),
        ({"tokens": 100.0}, {"tokens_per_second": 20.0}),
        ({"flops": 1e6}, {"flops_per_second": 2e6}),
        ({"flops": 0.0, "peak": 1e7}, {}),
        ({"tokens": 100.0, "steps_per_second": None}, {}),
        ({"tokens": 100.0, "steps": 0}, {}),
    ],
)
def test_throughput_is_told_as_far_as_it_is_known(known: dict[str, float], expected: dict[str, float]) -> None:
    nothing = {"steps": 10, "steps_per_second": 2.0, "tokens": None, "flops": None, "peak": None}
    assert exported.throughput(**{**nothing, **known}) == pytest.approx(expected)


def test_what_the_store_tells() -> None:
    readers = {"Evaler(test)": {"behind": 20, "skipped": 3}, "Decoder(a(b))": {"behind": None, "skipped": 0}}
    status = {"held": 2, "on_disk": 1, "bytes": 1000, "newest": (40, 1000.0), "readers": readers}
    assert exported.store_samples(status, now=1005.0) == [
        Sample("snapshot_age_seconds", 5.0, "store"),
        Sample("store_snapshots", 2.0, "store"),
        Sample("store_snapshots_on_disk", 1.0, "store"),
        Sample("store_bytes", 1000.0, "store"),
        Sample("eval_lag_steps", 20.0, "evaler", "test"),
        Sample("skipped_evaluations", 3.0, "evaler", "test"),
        Sample("skipped_evaluations", 0.0, "decoder", "a(b)"),
    ]
    assert "snapshot_age_seconds" not in _by_name(exported.store_samples({**status, "newest": None}, now=0.0))


def test_the_lag_of_a_reader_grows_while_it_works() -> None:
    def lag(metrics: dict[str, float], waiting_since: float | None) -> float | None:
        samples = exported.reader_samples("evaler", "test", metrics, 30, waiting_since, now=100.0)
        return _by_name(samples).get("eval_lag_seconds")

    assert lag({}, None) is None
    assert lag({"lag_seconds": 4.0}, None) == 4.0
    assert lag({"lag_seconds": 4.0}, 99.0) == 4.0
    assert lag({"lag_seconds": 4.0}, 40.0) == 60.0
    assert lag({}, 40.0) == 60.0
