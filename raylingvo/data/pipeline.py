"""Batches: an endless shuffled stream to train on, and one pass in order to evaluate on."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from raylingvo.data.dataset import Source
from raylingvo.errors import RequestError


class TrainInput:
    """An endless iterator of shuffled training batches: the source's fields, and `weight` f32[B] of ones.

    Batch k is a pure function of (seed, k). The stream is one permutation of the examples after another, a new one for
    each epoch, cut into batches of `batch_size` (B); a batch may therefore span epochs, and no example is dropped or
    seen twice within one. A background thread stays 4 batches ahead; `close` ends it.

    batch_size: >= 1, may exceed the number of examples. seed: in [0, 2^64). Raises ValueError if they are not, or if
    the source is empty.
    """

    def __init__(self, source: Source, batch_size: int, seed: int):
        # Imported here because Grain takes 1.4 s, which evaluation and the command line need not pay.
        import grain

        batches = _ShuffledBatches(source, batch_size, seed)
        # The stream that a position in it belongs to.
        self._stream = {"seed": seed, "batch_size": batch_size, "num_examples": len(source)}
        # Elements are whole batches because Grain spends 29 us of Python on each: 7.5 ms a batch if they were examples.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        self._batches = iter(grain.MapDataset.source(batches).to_iter_dataset(options))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._batches)

    def state(self) -> dict[str, Any]:
        """The position after the last batch that was returned (batches read ahead do not count), a JSON value."""
        return {"position": self._batches.get_state(), **self._stream}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on after the position of a `state()`, at a cost that does not depend on it.

        Raises RequestError if the state is of another stream: another seed, batch size or number of examples would
        repeat some examples of the epoch and drop others.
        """
        for name, value in self._stream.items():
            if state[name] != value:
                raise RequestError(
                    f"cannot resume the training input: {name} was {state[name]}, now it is {value}; "
                    "put the former data and settings back, or start in a new logdir"
                )
        self._batches.set_state(state["position"])

    def close(self) -> None:
        """Ends the background thread. Further batches raise ValueError; the state stays readable."""
        self._batches.close()


def eval_batches(source: Source, batch_size: int, max_examples: int | None = None) -> Iterator[dict[str, np.ndarray]]:
    """Each example (or each of the first `max_examples`) exactly once, in order: the source's fields, and `weight`.

    weight: f32[batch_size], 1 for an example. The last batch is filled up with copies of the last example, of weight 0,
    so that every batch has the shape the step was compiled for.
    """
    num_examples = _num_examples(source, max_examples)
    for k in range(num_eval_batches(source, batch_size, max_examples)):
        positions = np.arange(k * batch_size, (k + 1) * batch_size)
        batch = source.take(np.minimum(positions, num_examples - 1))
        yield {**batch, "weight": (positions < num_examples).astype(np.float32)}


def num_eval_batches(source: Source, batch_size: int, max_examples: int | None = None) -> int:
    """The number of batches that `eval_batches` gives. Raises ValueError if an argument is < 1."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1 (got {batch_size})")
    return -(-_num_examples(source, max_examples) // batch_size)


class _ShuffledBatches:
    """Random access to the batches of the endless stream: what Grain reads ahead from."""

    def __init__(self, source: Source, batch_size: int, seed: int):
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1 (got {batch_size})")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be in [0, 2^64) (got {seed})")
        if not len(source):
            raise ValueError("source must have at least one example (got none)")
        self._source = source
        self._batch_size = batch_size
        # Two: a batch at the border of epochs reads both.
        self._order = functools.lru_cache(maxsize=2)(functools.partial(_permutation, len(source), seed))

    def __len__(self) -> int:
        return sys.maxsize  # Grain wants a length; this one is never reached

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        n, start = len(self._source), index * self._batch_size
        stop = start + self._batch_size
        # Cut at the epochs' borders: those strictly inside the batch.
        cuts = [start, *range((start // n + 1) * n, stop, n), stop]
        parts = [self._order(a // n)[a % n : a % n + b - a] for a, b in itertools.pairwise(cuts)]
        return {**self._source.take(np.concatenate(parts)), "weight": np.ones(self._batch_size, np.float32)}


def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """i64[n], the order of the examples in one epoch."""
    # Sorting random bits instead of Generator.permutation: NumPy promises to keep the bits of a bit generator, but not
    # what Generator makes of them (NEP 19), and a checkpoint must resume in the same order after an upgrade.
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(n)
    return np.argsort(bits, kind="stable")


def _num_examples(source: Source, max_examples: int | None) -> int:
    if max_examples is None:
        return len(source)
    if max_examples < 1:
        raise ValueError(f"max_examples must be >= 1 (got {max_examples})")
    return min(len(source), max_examples)
