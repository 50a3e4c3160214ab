"""A Transformer language model's train step against the same model by hand, in plain JAX and in PyTorch.

    python benchmarks/transformer_lm_step.py [--rounds 7] [--steps 2]

6 layers of 384 features and 6 heads, 16 rows of 128 tokens, vocabulary 256, Adam, float32 (benchmarks/
_plain_transformer.py). Ours is the Trainer's own step: with its metrics, its check for what is not finite, and its
global norms. All versions are in this process, which keeps freed memory as a Trainer does, and are timed in turns of
`--steps` steps. Prints one JSON line:
`ratio_plain_jax` is the median over rounds of plain JAX's seconds / ours (goal: >= 0.95), `ratio_torch` of PyTorch's
(>= 1.3), null where torch is not installed.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from _compare import keep_memory, median, report, timed_in_turn
from _plain_transformer import BATCH, FEATURES, HEADS, LAYERS, LENGTH, VOCABULARY, PlainJax, torch_steps

from raylingvo.data.synthetic import SyntheticPackedRows
from raylingvo.experiment import Experiment, Train
from raylingvo.models.layers.attention import AttentionConfig
from raylingvo.models.layers.feed_forward import FeedForwardConfig
from raylingvo.models.layers.transformer import TransformerConfig
from raylingvo.models.lm.language_model import LanguageModel
from raylingvo.models.lm.transformer_lm import TransformerLm
from raylingvo.training.learner import Learner
from raylingvo.training.optimizers import Adam
from raylingvo.training.state import init_state
from raylingvo.training.step import make_train_step


def _experiment() -> Experiment:
    stack = TransformerConfig(
        num_layers=LAYERS,
        attention=AttentionConfig(model_dim=FEATURES, num_heads=HEADS, query_scale="sqrt_dim"),
        feed_forward=FeedForwardConfig(hidden_dim=4 * FEATURES, activation="gelu_tanh"),
    )
    return Experiment(
        task=LanguageModel(model=TransformerLm(vocab_size=VOCABULARY, stack=stack, learned_positions=LENGTH)),
        datasets={"train": SyntheticPackedRows(length=LENGTH)},
        learner=Learner(learning_rate=1e-3, optimizer=Adam()),
        train=Train(batch_size=BATCH, max_steps=1),
    )


class Ours:
    """The model in training, by the Trainer's step."""

    def __init__(self, batch: dict[str, np.ndarray]) -> None:
        experiment = _experiment()
        self._state = init_state(experiment, batch)
        self._step = jax.jit(make_train_step(experiment), donate_argnums=0)

    def steps(self, batches: list[tuple[np.ndarray, np.ndarray]]) -> float:
        """A step for each batch; the loss of all of them so far."""
        for ids, labels in batches:
            self._state, _ = self._step(self._state, _batch(ids, labels))
        jax.block_until_ready(self._state)
        total, weight = self._state.totals["loss"]
        return float(total / weight)


def _batch(ids_BxT: np.ndarray, labels_BxT: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "ids": ids_BxT,
        "labels": labels_BxT,
        "paddings": np.zeros(ids_BxT.shape, np.float32),
        "weight": np.ones(len(ids_BxT), np.float32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="steps of each version in a round")
    args = parser.parse_args()
    keep_memory()
    random = np.random.default_rng(0)
    # Each token follows from the one before it by a permutation, so that the losses can be seen to fall.
    table = random.permutation(VOCABULARY)
    batches = []
    for _ in range(args.steps):
        ids_BxT = random.integers(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)
        batches.append((ids_BxT, table[ids_BxT].astype(np.int32)))
    cpus = len(os.sched_getaffinity(0))
    versions: dict[str, Callable[[list[Any]], float]] = {
        "ours": Ours(_batch(*batches[0])).steps,
        "plain_jax": PlainJax().steps,
    }
    try:
        versions["torch"] = torch_steps(cpus)
    except ImportError:
        print("torch is not installed: without its figures", file=sys.stderr)
    for run in versions.values():  # compiles, and touches memory
        run(batches)
    turns = {name: functools.partial(run, batches) for name, run in versions.items()}
    seconds, losses = timed_in_turn(turns, args.rounds)

    def ratio(name: str) -> float | None:
        if name not in seconds:
            return None
        return round(median([other / ours for other, ours in zip(seconds[name], seconds["ours"], strict=True)]), 3)

    report(
        "transformer_lm_step",
        ratio_plain_jax=ratio("plain_jax"),
        ratio_torch=ratio("torch"),
        tokens_per_second={name: round(args.steps * BATCH * LENGTH / median(s)) for name, s in seconds.items()},
        last_losses=losses,
        rounds=args.rounds,
        cpus=cpus,
    )


if __name__ == "__main__":
    main()
