"""The registered MNIST recipe on real digits, end to end, against what Lingvo reaches on the same split."""

from __future__ import annotations

from pathlib import Path

import pytest

import raylingvo as rl
from raylingvo.data.prepare import prepare
from raylingvo.monitor.metrics_log import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.data, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lenet5_learns_mnist_as_lingvo_does(
    seed: int, test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8,000 images to train on, 2,000 to test. Lingvo: .928 to .936 at step 205, .959 to .967 at step 600."""
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path / "data"))
    prepare("mnist", test_data / "mnist" / "mnist10k.npz")
    overrides = {"train.seed": seed, "train.max_steps": 600, "train.snapshots.every_steps": 205, "decode": {}}
    experiment = rl.override(rl.get("image.mnist.LeNet5"), {**overrides, "eval.test.policy": "every"})
    rl.run(experiment, tmp_path / "run")
    accuracy = {record["step"]: record["accuracy"] for record in read_metrics(tmp_path / "run" / "eval_test")}
    print(f"seed {seed}: {accuracy}")
    assert accuracy[205] > 0.92
    assert accuracy[600] > 0.955
