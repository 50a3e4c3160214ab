"""The small sampled-softmax model on real English, end to end, against an add-k trigram of the same text."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from lm_text import AddKTrigram, prepare_text

import raylingvo as rl
from raylingvo.data.sequence_dataset import SequenceDataset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.data,
    pytest.mark.timeout(1800),
    # ray.shutdown() kills the processes that it started, and does not wait for them to be gone.
    pytest.mark.filterwarnings("ignore:.*Popen.__del__:pytest.PytestUnraisableExceptionWarning"),
]

NAME = "lm.one_billion_wds.WordLevelSmall"


def test_it_beats_a_trigram_of_the_same_text(test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Perplexity of 476 held-out sentences, by the whole softmax; the trigram may choose its k by looking at them."""
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    experiment = rl.get(NAME)
    prepare_text(test_data, tmp_path / "data", vocab_size=4000)

    train, test = _sentences(experiment.datasets["train"], 10_000), _sentences(experiment.datasets["test"], 60)
    trigram = AddKTrigram(train, vocab_size=4000, sos_id=1)
    trigram_perplexity = min(math.exp(trigram.log_pplx(test, k)) for k in np.geomspace(1e-4, 1, 41))

    started = time.monotonic()
    metrics = rl.run(experiment, tmp_path / "run")["eval"]["test"]
    seconds = time.monotonic() - started
    perplexity = math.exp(metrics["log_pplx"])
    print(f"{NAME}: {perplexity:.1f}, trigram {trigram_perplexity:.1f}, {seconds:.0f} s")
    assert metrics["num_predictions"] == sum(map(len, test))
    # An interpolated Kneser-Ney trigram reaches 83.5.
    assert perplexity < 83 < trigram_perplexity


def _sentences(dataset: SequenceDataset, max_length: int) -> list[list[int]]:
    """The labels of each sentence of at most so many tokens. (The buckets of the experiment have room for 60.)"""
    source = dataset.open()
    (ragged,) = source.take(np.flatnonzero(source.length_NxC[:, 0] <= max_length))
    return [part.tolist() for part in np.split(ragged.token_T, np.cumsum(ragged.length_B)[:-1])]
