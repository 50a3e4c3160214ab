"""Evaluation and decoding of the checkpoints of a run that is over: the roles without actors, in this process."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raylingvo.actors.logdir import hold, read_experiment, read_info
from raylingvo.actors.reader import Arrival, Kind
from raylingvo.errors import RequestError
from raylingvo.experiment import Reading
from raylingvo.monitor.metrics_log import json_values
from raylingvo.training import checkpoints


def read_checkpoints(
    kind: Kind,
    logdir: Path,
    *,
    datasets: Sequence[str] = (),
    checkpoint: str = "latest",
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Evaluates (or decodes: `kind`) checkpoints on datasets, and records the results as the run's own roles do.

    datasets: any of the experiment's; those that the run evaluates (decodes) if empty. checkpoint: latest, best, all or
    a step. progress is called with a line for each result.
    Returns a JSON value {"run": its id, or None if the logdir has no run.json, "experiment", "logdir",
    kind: {dataset: {"step", metric: value}} of the last checkpoint, "all": {dataset: [{"step", metric: value}, ...]}}.
    As in the logs, a value that is not finite is None.
    Raises RequestError for what does not exist or is damaged, or a logdir in use.
    """
    experiment = read_experiment(logdir)
    info = read_info(logdir)
    names = list(datasets) or list(getattr(experiment, kind))
    if not names:
        raise RequestError(f"{experiment.name} names no dataset to {kind}; it has {', '.join(experiment.datasets)}")
    for name in names:
        if name not in experiment.datasets:
            raise RequestError(f"no dataset {name!r} in {experiment.name}; it has {', '.join(experiment.datasets)}")
        experiment.datasets[name].check()
    readings = {name: getattr(experiment, kind).get(name, Reading()) for name in names}
    experiment = dataclasses.replace(experiment, **{kind: readings})
    steps = checkpoints.resolve(logdir, checkpoint, experiment.train.checkpoints.best)

    from raylingvo.actors.decoder import Decoder
    from raylingvo.actors.evaler import Evaler

    role_class = Evaler if kind == "eval" else Decoder
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with hold(logdir), contextlib.ExitStack() as opened:
        roles = [opened.enter_context(contextlib.closing(role_class(experiment, name, logdir))) for name in names]
        for step in steps:
            weights = checkpoints.restore_weights(logdir, step, roles[0].abstract_weights)
            for name, role in zip(names, roles, strict=True):
                metrics = role.process(Arrival(step, time.time(), weights))
                results[name].append({"step": step, **json_values(metrics)})
                progress(f"{kind} {name} @ {step}")
    last = {name: records[-1] for name, records in results.items()}
    return {
        "run": info and info["id"],
        "experiment": experiment.name,
        "logdir": str(logdir),
        kind: last,
        "all": results,
    }
