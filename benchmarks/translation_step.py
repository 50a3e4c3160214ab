"""A train step of Transformer base for translation against the same model by hand, in plain JAX.

    python benchmarks/translation_step.py [--model Base] [--rounds 5] [--steps 1]

`mt.wmt14_en_de.WmtEnDeTransformerBase`: 6 + 6 layers of 512 features, 8 heads, 2,048 between, 32,000 words, dropout and
smoothed labels as the experiment has them, Adam, float32; 32 pairs of 28 to 32 tokens, padded to 32. Ours is the
Trainer's own step: with its metrics, its check for what is not finite, and its global norms. The one by hand
(benchmarks/_plain_translation.py) starts from the same weights. Both are in this process, which keeps freed memory as a
Trainer does, and are timed in turns of `--steps` steps. Prints one JSON line: `ratio_plain_jax` is the median over
rounds of plain JAX's seconds / ours (goal: >= 0.95); `loss_difference`: at step 0, on the same weights and without
dropout. Exit status 1 if that is more than 1e-4.
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
from _compare import keep_memory, median, report, timed_in_turn, without_zeros
from _plain_translation import PlainJax, loss, of_ours

import raylingvo as rl
from raylingvo.experiment import Experiment
from raylingvo.models.mt.translation import Translation
from raylingvo.training.state import Model, init_state
from raylingvo.training.step import make_train_step

B, T = 32, 32
_TOLERANCE = 1e-4


def _batches(count: int, vocabulary: int) -> list[dict[str, np.ndarray]]:
    """The target is the source's words, replaced by a permutation, so that the losses can be seen to fall."""
    random = np.random.default_rng(0)
    table = random.permutation(vocabulary)
    batches = []
    for _ in range(count):
        src_BxT = random.integers(0, vocabulary, (B, T))
        labels_BxT = table[src_BxT]
        tgt_BxT = np.concatenate([np.ones((B, 1)), labels_BxT[:, :-1]], axis=1)
        src_length_B, tgt_length_B = random.integers(T - 4, T + 1, (2, B))
        batches.append(
            {
                "src_ids": src_BxT.astype(np.int32),
                "src_paddings": (np.arange(T) >= src_length_B[:, None]).astype(np.float32),
                "tgt_ids": tgt_BxT.astype(np.int32),
                "tgt_labels": labels_BxT.astype(np.int32),
                "tgt_paddings": (np.arange(T) >= tgt_length_B[:, None]).astype(np.float32),
                "weight": np.ones(B, np.float32),
                "id": np.arange(B),
            }
        )
    return batches


class Ours:
    """The model in training, by the Trainer's step."""

    def __init__(self, experiment: Experiment, batch: dict[str, np.ndarray]) -> None:
        self._task = experiment.task
        state = init_state(experiment, batch)
        self._state = state._replace(weights=state.weights._replace(params=without_zeros(state.weights.params)))
        self._step = jax.jit(make_train_step(experiment), donate_argnums=0)
        self._totals = np.zeros(2)

    @property
    def params(self) -> dict[str, Any]:
        return self._state.weights.params

    def loss(self, batch: dict[str, np.ndarray]) -> float:
        """Without dropout."""
        model = Model(self._task)
        metrics = jax.jit(lambda weights, batch: self._task.eval_metrics(model.merge(weights), batch))
        return float(metrics(self._state.weights, batch)["log_pplx"][0])

    def steps(self, batches: list[dict[str, np.ndarray]]) -> float:
        """A step for each batch; their mean loss."""
        for batch in batches:
            self._state, _ = self._step(self._state, batch)
        jax.block_until_ready(self._state)
        before, self._totals = self._totals, np.array(self._state.totals["log_pplx"])
        total, words = self._totals - before
        return float(total / words)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=("Base", "Small"), default="Base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps of each version in a round")
    args = parser.parse_args()
    keep_memory()
    experiment = rl.get(f"mt.wmt14_en_de.WmtEnDeTransformer{args.model}")
    assert isinstance(experiment.task, Translation)
    batches = _batches(args.steps, experiment.task.model.target_vocab_size)
    ours = Ours(experiment, batches[0])
    weights = of_ours(ours.params)
    first = {"ours": ours.loss(batches[0]), "plain_jax": float(jax.jit(loss)(weights, batches[0]))}
    difference = abs(first["ours"] - first["plain_jax"])
    print(f"first losses {first}", file=sys.stderr)
    versions: dict[str, Callable[[list[Any]], float]] = {"ours": ours.steps, "plain_jax": PlainJax(weights).steps}
    for run in versions.values():  # compiles, and touches memory
        run(batches)
    turns = {name: functools.partial(run, batches) for name, run in versions.items()}
    seconds, losses = timed_in_turn(turns, args.rounds)
    words = sum(float((1 - batch["tgt_paddings"]).sum()) for batch in batches)
    ratios = [plain / own for plain, own in zip(seconds["plain_jax"], seconds["ours"], strict=True)]
    report(
        "translation_step",
        ratio_plain_jax=round(median(ratios), 3),
        target_tokens_per_second={name: round(words / median(spent)) for name, spent in seconds.items()},
        seconds_per_step={name: round(median(spent) / args.steps, 3) for name, spent in seconds.items()},
        first_losses=first,
        loss_difference=difference,
        last_losses=losses,
        goals={"ratio_plain_jax": 0.95},
        model=args.model,
        words_per_batch=round(words / args.steps),
        rounds=args.rounds,
        device=jax.devices()[0].device_kind,
        cpus=len(os.sched_getaffinity(0)),
    )
    return 0 if difference <= _TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
