"""The small Transformer of characters on Tiny Shakespeare, end to end: the published loss, and text from a prompt."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import raylingvo as rl
from raylingvo.actors.offline_lines import decode_lines
from raylingvo.data.prepare import prepare

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.data,
    pytest.mark.timeout(1800),
    # ray.shutdown() kills the processes that it started, and does not wait for them to be gone.
    pytest.mark.filterwarnings("ignore:.*Popen.__del__:pytest.PytestUnraisableExceptionWarning"),
]

NAME = "lm.shakespeare.CharTransformer"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_held_out_loss(test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """nanoGPT publishes 1.88 for this setting: 4 layers of 128, windows of 64, 2,000 batches of 12."""
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path / "data"))
    prepare("tinyshakespeare", test_data / "lm" / "tinyshakespeare.txt")
    started = time.monotonic()
    result = rl.run(rl.override(rl.get(NAME), {"train.seed": seed}), tmp_path / "run")
    seconds = time.monotonic() - started
    metrics = result["eval"]["dev"]
    print(f"{NAME}, seed {seed}: {metrics['log_pplx']:.4f} at step {metrics['step']}, {seconds:.0f} s")
    assert metrics["step"] == 2_000
    assert metrics["num_predictions"] == 111_539  # each held-out character but the first
    assert metrics["log_pplx"] <= 1.88
    lines, outputs = iter([["ROMEO:"], []]), []
    decode_lines(tmp_path / "run", lambda _: next(lines), outputs.append)
    (output,) = outputs
    print(output["text"])
    assert len(output["text"]) == 200
    assert output["log_prob"] / 200 > -2.5  # a character at random has -4.2


def test_the_best_within_ten_minutes_of_cpu_time(
    test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path / "data"))
    prepare("tinyshakespeare", test_data / "lm" / "tinyshakespeare.txt")
    started = time.monotonic()
    metrics = rl.run(rl.get(f"{NAME}Long"), tmp_path / "run")["eval"]["dev"]
    seconds, cores = time.monotonic() - started, len(os.sched_getaffinity(0))
    print(f"{NAME}Long: {metrics['log_pplx']:.4f} at step {metrics['step']}, {seconds:.0f} s on {cores} cores")
    assert metrics["num_predictions"] == 111_539
    assert metrics["log_pplx"] <= 1.60
