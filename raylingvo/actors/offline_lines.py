"""Decoding of text that a user gives, with a checkpoint of a run: in this process, without datasets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from raylingvo.actors.logdir import hold, read_experiment, read_info
from raylingvo.actors.notes import Notes
from raylingvo.actors.variant import Variant, override_task, task_at
from raylingvo.config import FrozenDict
from raylingvo.data.host_fields import device_fields
from raylingvo.errors import RequestError
from raylingvo.models.task import Task
from raylingvo.monitor.metrics_log import json_tree
from raylingvo.monitor.text import count
from raylingvo.training import checkpoint_average
from raylingvo.training.host_copy import decode
from raylingvo.training.state import Model, Weights

# How many batches of lines are sorted by length at a time: more would save little padding and delay the first output.
_BATCHES_AT_A_TIME = 16
# Rows of a batch that is not full: each size is compiled anew for each width. With these and 32, a line typed alone
# pays for itself only, and a few lines for at most 4 times their number.
_SMALL_BATCHES = (1, 8)
_SECONDS_BETWEEN_REPORTS = 5.0


def decode_lines(
    logdir: Path,
    take: Callable[[int], list[str]],
    write: Callable[[dict[str, Any]], None],
    *,
    checkpoint: str = "latest",
    average: int = 1,
    overrides: Mapping[str, str] = FrozenDict(),
    batch_size: int = 32,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Decodes lines as they come, as the task's `encode_lines` reads them, until there are no more.

    take(n): waits for a line, and returns those that are there, at most n; [] at the end. write: is called with the
    output of each line, in order, as soon as it and those before it are there: {"input": line, "line": its number,
    from 1, ...}, JSON in which a number that is not finite is None.
    checkpoint: latest, best or a step. average and overrides: as of `read_checkpoints`. batch_size: lines at a time.
    progress: is called with a line now and then if many lines come, and at the end; then also with how many outputs
    have a `note`, by which a task says why an output is empty or not of the whole line.
    Returns a JSON value {"run", "experiment", "logdir", "step"}, with an average or overrides also "average": [steps]
    and "set": {key: value}. Raises RequestError for what does not exist or is damaged, a logdir in use, a task that
    decodes no text, or what `take` and `encode_lines` refuse.
    """
    if checkpoint == "all":
        raise RequestError("--checkpoint all goes with datasets; decode --input uses one: latest, best or a step")
    of_run = read_experiment(logdir)
    experiment = override_task(of_run, overrides)
    info = read_info(logdir)
    steps = checkpoint_average.resolve(logdir, checkpoint, average, experiment.train.checkpoints.best)
    variant = Variant(averaged=tuple(sorted(steps)) if average > 1 else (), overrides=overrides)
    experiment.task.encode_lines([""])  # a task that reads no text says so before it is waited for
    model = Model(experiment.task)
    # Weights that have been read may be worked with for hours: others need not wait for the logdir.
    with hold(logdir):
        weights = checkpoint_average.restore_mean(logdir, steps, model.abstract)
        weights = jax.device_put(decode(weights, model.abstract))
        task = task_at(logdir, max(steps), of_run, overrides)
    decoder = _BatchDecoder(task, model if task == experiment.task else Model(task), weights)
    name = f"decode @ {max(steps)}{variant}"
    notes, num_lines, reported = Notes(), 0, time.monotonic()
    many = False  # whether lines come faster than they are decoded
    while lines := take(_BATCHES_AT_A_TIME * batch_size):
        many_before, many = many, len(lines) >= batch_size
        fitting = [size for size in _SMALL_BATCHES if len(lines) <= size < batch_size]
        # What is left after many lines has the shape of the full batches before it, rather than one of its own.
        size = fitting[0] if fitting and not many_before else batch_size
        for line, output in zip(lines, _in_order(decoder, lines, size), strict=True):
            num_lines += 1
            notes.add(output)
            write({"input": line, "line": num_lines, **output})
            if many and time.monotonic() - reported >= _SECONDS_BETWEEN_REPORTS:
                progress(f"{name}: {count(num_lines, 'line')} so far")
                reported = time.monotonic()
    progress(f"{name}: {count(num_lines, 'line')}")
    if summary := notes.summary(num_lines):
        progress(summary)
    return {
        "run": info and info["id"],
        "experiment": experiment.name,
        "logdir": str(logdir),
        "step": max(steps),
        **variant.fields(),
    }


class _BatchDecoder:
    """The device's part and what is around it, for one batch of lines."""

    def __init__(self, task: Task, model: Model, weights: Weights):
        self._task, self._weights = task, weights
        self._step = jax.jit(lambda weights, batch: task.decode(model.merge(weights), batch))

    def __call__(self, lines: Sequence[str], size: int) -> list[dict[str, Any]]:
        """The output of each line, in a batch of `size` rows."""
        batch = self._task.encode_lines([*lines, *[""] * (size - len(lines))])
        batch["weight"][len(lines) :] = 0.0
        outputs, _ = self._task.postprocess(jax.device_get(self._step(self._weights, device_fields(batch))), batch)
        return [json_tree(output) for _, output in outputs]


def _in_order(decoder: _BatchDecoder, lines: Sequence[str], size: int) -> Iterator[dict[str, Any]]:
    """The outputs of some lines, each as soon as those before it are there; batches are of lines of similar length."""
    # The short ones last: they are what is filled up to a whole batch.
    longest_first = sorted(range(len(lines)), key=lambda i: len(lines[i]), reverse=True)
    done: dict[int, dict[str, Any]] = {}
    following = 0
    for start in range(0, len(lines), size):
        part = longest_first[start : start + size]
        done.update(zip(part, decoder([lines[i] for i in part], size), strict=True))
        while following in done:
            yield done.pop(following)
            following += 1
