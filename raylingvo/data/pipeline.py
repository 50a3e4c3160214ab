"""Batches on their way to a step: read ahead in the background, and resumable."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from raylingvo.data.batches import Batches
from raylingvo.errors import RequestError

_AHEAD = 4  # batches


class TrainInput:
    """An iterator over an endless stream of batches, read ahead in a background thread, which `close` ends."""

    def __init__(self, batches: Batches):
        # Imported here because Grain takes 1.4 s, which evaluation and the command line need not pay.
        import grain

        self._identity = dict(batches.identity)
        self.facts = batches.facts
        # Elements are whole batches because Grain spends 29 us of Python on each: 7.5 ms a batch if they were examples.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)
        source: Any = batches  # which calls the number of a batch k, and not index
        self._batches = iter(grain.MapDataset.source(source).to_iter_dataset(options))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._batches)

    def state(self) -> dict[str, Any]:
        """The position after the last batch that was returned (batches read ahead do not count), a JSON value."""
        return {"position": self._batches.get_state(), **self._identity}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on after the position of a `state()`, at a cost that does not depend on it.

        Raises RequestError if the state is of another stream: another seed, batch size or number of examples would
        repeat some examples of the epoch and drop others.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise RequestError(
                    f"cannot resume the training input: {name} was {state.get(name)}, now it is {value}; "
                    "put the former data and settings back, or start in a new logdir"
                )
        self._batches.set_state(state["position"])

    def close(self) -> None:
        """Ends the background thread. Further batches raise ValueError; the state stays readable."""
        self._batches.close()


def read_ahead(batches: Batches) -> Iterator[dict[str, np.ndarray]]:
    """All batches of a finite sequence, in order, each read while the ones before it are worked on."""
    with ThreadPoolExecutor(1, thread_name_prefix="input") as executor:
        pending: deque[Future[dict[str, np.ndarray]]] = deque()
        try:
            for k in range(len(batches)):
                pending.append(executor.submit(batches.__getitem__, k))
                if len(pending) > _AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
