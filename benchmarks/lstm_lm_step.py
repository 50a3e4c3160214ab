"""The train step of an LSTM language model against a scan written by hand, and against torch.nn.LSTM.

    python benchmarks/lstm_lm_step.py [--rounds 3] [--steps 10]

Two LSTMs of 512, a vocabulary of 10,000, 32 sentences of 20 tokens, float32, gradient descent, on whatever cores the
process may use. Ours is the Trainer's own step. The one by hand starts from the same weights, and its first losses are
compared; PyTorch's is run where it is installed (`pip install torch`). Each runs in a process of its own, which keeps
freed memory as a Trainer does, in turns.
Prints one JSON line: `ratio` is our tokens/s over those of the scan by hand, the median over rounds; goals: 0.9, and
`torch_ratio` 1.0. Exit status 1 if a loss differs by more than 1e-4.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from _compare import in_turn, keep_memory, median, report

V, D, B, T = 10_000, 512, 32, 20
_RATE = 0.5
_COMPARED_STEPS = 10
_TOLERANCE = 1e-4


def _batches() -> list[dict[str, np.ndarray]]:
    """Words as frequent as in text, each followed by what it was followed by before, more often than not."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(_COMPARED_STEPS):
        tokens = np.minimum(rng.zipf(1.3, (B, T + 1)), V) - 1
        follow = rng.random((B, T)) < 0.5
        for t in range(T):
            tokens[:, t + 1] = np.where(follow[:, t], tokens[:, t] * 7 % V, tokens[:, t + 1])
        batches.append(
            {
                "ids": tokens[:, :-1].astype(np.int32),
                "labels": tokens[:, 1:].astype(np.int32),
                "paddings": np.zeros((B, T), np.float32),
                "weight": np.ones(B, np.float32),
            }
        )
    return batches


def _experiment() -> Any:
    import raylingvo as rl
    from raylingvo.models.lm.language_model import LanguageModel
    from raylingvo.models.lm.rnn_lm import RnnLm
    from raylingvo.training.learner import Learner
    from raylingvo.training.optimizers import Sgd

    model = RnnLm(vocab_size=V, features=D, embedding_init=0.05, softmax_init=0.05)
    return dataclasses.replace(
        rl.get("lm.one_billion_wds.WordLevelSmall"),
        task=LanguageModel(model=model, tokens_are_words=True),
        learner=Learner(learning_rate=_RATE, optimizer=Sgd()),
    )


class Ours:
    """The Trainer's step."""

    def __init__(self, batch: Mapping[str, np.ndarray]) -> None:
        import jax

        from raylingvo.training.state import init_state
        from raylingvo.training.step import make_train_step

        self.state = init_state(_experiment(), batch)
        self._total = 0.0
        self._step = jax.jit(make_train_step(_experiment()), donate_argnums=0)

    def step(self, batch: Mapping[str, np.ndarray]) -> Callable[[], float]:
        self.state, _ = self._step(self.state, batch)
        return self._loss

    def _loss(self) -> float:
        """Of the step before."""
        total = float(self.state.totals["loss"][0])
        loss, self._total = (total - self._total) / (B * T), total
        return loss

    def wait(self) -> None:
        import jax

        jax.block_until_ready(self.state)


class ByHand:
    """What one writes with jax.lax.scan, from the same weights."""

    def __init__(self, batch: Mapping[str, np.ndarray]) -> None:
        import jax
        import jax.numpy as jnp
        import optax

        def lstm(layer: Mapping[str, Any], x_TxBxD: Any) -> Any:
            gates_x = x_TxBxD @ layer["kernel"][:D] + layer["bias"][None, None]
            recurrent = layer["kernel"][D:]

            def frame(state: Any, gates_x: Any) -> Any:
                m, c = state
                candidate, enter, forget, leave = jnp.split(gates_x + m @ recurrent, 4, axis=-1)
                c = jax.nn.sigmoid(forget) * c + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
                m = jax.nn.sigmoid(leave) * jnp.tanh(c)
                return (m, c), m

            zeros = jnp.zeros((B, D))
            return jax.lax.scan(frame, (zeros, zeros), gates_x)[1]

        def loss_fn(params: Any, batch: Any) -> Any:
            x = params["embedding"]["table"][batch["ids"].T] * D**0.5
            for layer in params["rnn"]["layers"].values():
                x = lstm(layer["cell"], x)
            logits = x @ params["softmax"]["kernel"].T + params["softmax"]["bias"][None, None]
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"].T).mean()

        def step(params: Any, batch: Any) -> Any:
            loss, grads = jax.value_and_grad(loss_fn)(params, batch)
            return jax.tree.map(lambda p, g: p - _RATE * g, params, grads), loss

        self._params = Ours(batch).state.weights.params
        self._step = jax.jit(step, donate_argnums=0)

    def step(self, batch: Mapping[str, np.ndarray]) -> Callable[[], float]:
        self._params, loss = self._step(self._params, batch)
        return lambda: float(loss)

    def wait(self) -> None:
        import jax

        jax.block_until_ready(self._params)


class Torch:
    """torch.nn.LSTM, from weights of its own."""

    def __init__(self, batch: Mapping[str, np.ndarray]) -> None:
        import torch

        del batch
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._torch = torch
        self._embedding = torch.nn.Embedding(V, D)
        self._lstm = torch.nn.LSTM(D, D, num_layers=2, batch_first=True)
        self._softmax = torch.nn.Linear(D, V)
        modules = torch.nn.ModuleList([self._embedding, self._lstm, self._softmax])
        self._optimizer = torch.optim.SGD(modules.parameters(), lr=_RATE)

    def step(self, batch: Mapping[str, np.ndarray]) -> Callable[[], float]:
        ids, labels = (self._torch.from_numpy(batch[name]).long() for name in ("ids", "labels"))
        self._optimizer.zero_grad()
        logits = self._softmax(self._lstm(self._embedding(ids))[0])
        loss = self._torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        self._optimizer.step()
        return loss.item

    def wait(self) -> None:
        pass


_VERSIONS = {"ours": Ours, "by_hand": ByHand, "torch": Torch}


def _measure(version: str, steps: int) -> dict[str, Any]:
    """tokens/s over `steps` steps, after the first ones and their losses."""
    batches = _batches()
    run = _VERSIONS[version](batches[0])
    losses = [run.step(batch)() for batch in batches]
    run.wait()
    start = time.perf_counter()
    for i in range(steps):
        run.step(batches[i % len(batches)])
    run.wait()
    return {"tokens_per_second": steps * B * T / (time.perf_counter() - start), "losses": losses}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="that are timed, in each round")
    parser.add_argument("--version", choices=_VERSIONS, help="measure this one only, in this process")
    args = parser.parse_args()
    if args.version:
        print(json.dumps(_measure(args.version, args.steps)))
        return 0
    keep_memory()
    versions = [version for version in _VERSIONS if version != "torch" or importlib.util.find_spec("torch")]
    command = [sys.executable, __file__, "--steps", str(args.steps), "--version"]
    results = in_turn({version: [*command, version] for version in versions}, args.rounds)
    speeds = {version: [result["tokens_per_second"] for result in results[version]] for version in versions}

    def ratio(baseline: str) -> float:
        return round(median([a / b for a, b in zip(speeds["ours"], speeds[baseline], strict=True)]), 3)

    pairs = zip(results["ours"][0]["losses"], results["by_hand"][0]["losses"], strict=True)
    difference = max(abs(a - b) for a, b in pairs)
    report(
        "lstm_lm_step",
        ratio=ratio("by_hand"),
        torch_ratio=ratio("torch") if "torch" in versions else None,
        tokens_per_second={version: round(median(speeds[version])) for version in versions},
        max_loss_difference=difference,
        goals={"ratio": 0.9, "torch_ratio": 1.0},
        cpus=len(os.sched_getaffinity(0)),
    )
    return 0 if difference <= _TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
