"""What a live view is told of metrics is what Prometheus is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gates
import pytest
from running import Running, gated, only_eval, own_ray

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def _lag(status: Any) -> float | None:
    lags = [sample.value for sample in status.get("samples", ()) if sample.name == "eval_lag_seconds"]
    return lags[0] if lags else None


def test_the_lag_grows_while_an_evaler_works_on_its_first_snapshot(
    tmp_path: Path, new_gate: Callable[[str], gates.Gate]
) -> None:
    """It has no result yet that could tell a lag."""
    gate = new_gate("eval")
    with own_ray(num_cpus=4):
        running = Running(gated(only_eval("last"), "test", gate), tmp_path / "run")
        gate.wait()
        gate.let_through()  # the batch from which it knows what to compile
        gate.wait()  # held in its first evaluation
        running.view.wait_for(_lag)
        first = _lag(running.view.statuses[-1])
        assert first is not None
        running.view.wait_for(lambda status: (_lag(status) or 0.0) > first)
        assert running.view.statuses[-1]["readers"][0]["done"] == 0
        gate.open()
        assert running.result()["status"] == "finished"
    (reader,) = running.view.statuses[-1]["readers"]
    assert _lag(running.view.statuses[-1]) == pytest.approx(reader["lag_seconds"])
