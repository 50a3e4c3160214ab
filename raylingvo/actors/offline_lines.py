"""Decoding of text that a user gives, with a checkpoint of a run: in this process, without datasets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from raylingvo.actors.logdir import hold, read_experiment, read_info
from raylingvo.errors import RequestError
from raylingvo.monitor.metrics_log import json_tree
from raylingvo.training import checkpoints
from raylingvo.training.host_copy import decode
from raylingvo.training.state import Model


def decode_lines(
    logdir: Path,
    lines: Sequence[str],
    *,
    checkpoint: str = "latest",
    batch_size: int = 32,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Decodes each line, as the task's `encode_lines` reads it.

    checkpoint: latest, best or a step. batch_size: lines at a time. progress is called with a line after each batch.
    Returns a JSON value {"run", "experiment", "logdir", "step", "outputs": [{"input": line, ...}, ...]}, an output for
    each line, in order; a number that is not finite is None. Raises RequestError for what does not exist or is damaged,
    a logdir in use, or a task that decodes no text.
    """
    experiment = read_experiment(logdir)
    info = read_info(logdir)
    if checkpoint == "all":
        raise RequestError("--checkpoint all goes with datasets; decode --input uses one: latest, best or a step")
    (step,) = checkpoints.resolve(logdir, checkpoint, experiment.train.checkpoints.best)
    task, model = experiment.task, Model(experiment.task)
    outputs: list[dict[str, Any]] = []
    with hold(logdir):
        weights = jax.device_put(decode(checkpoints.restore_weights(logdir, step, model.abstract), model.abstract))
        decode_step = jax.jit(lambda weights, batch: task.decode(model.merge(weights), batch))
        for start in range(0, len(lines), batch_size):
            part = list(lines[start : start + batch_size])
            # The last batch is filled up with empty lines: another size would be compiled anew.
            batch = task.encode_lines(part + [""] * (batch_size - len(part) if start else 0))
            batch["weight"][len(part) :] = 0.0
            found, _ = task.postprocess(jax.device_get(decode_step(weights, batch)), batch)
            outputs += [{"input": line, **json_tree(output)} for line, (_, output) in zip(part, found, strict=True)]
            progress(f"decode @ {step}: {len(outputs)} of {len(lines)} lines")
    return {
        "run": info and info["id"],
        "experiment": experiment.name,
        "logdir": str(logdir),
        "step": step,
        "outputs": outputs,
    }
