"""Evaluation and decoding of the checkpoints of a run that is over: the roles without actors, in this process."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raylingvo.actors.logdir import hold, read_experiment, read_info
from raylingvo.actors.reader import Arrival, Kind
from raylingvo.actors.variant import Variant, override_task, task_at
from raylingvo.config import FrozenDict
from raylingvo.errors import RequestError
from raylingvo.experiment import Reading
from raylingvo.monitor.metrics_log import json_values
from raylingvo.training import checkpoint_average, checkpoints


def read_checkpoints(
    kind: Kind,
    logdir: Path,
    *,
    datasets: Sequence[str] = (),
    checkpoint: str = "latest",
    average: int = 1,
    overrides: Mapping[str, str] = FrozenDict(),
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Evaluates (or decodes: `kind`) checkpoints on datasets, and records the results.

    They are recorded in the logdir as the run's own roles do. Those of an average or with overrides are recorded
    likewise in a folder of their own below it, the average's under the newest of its steps.

    The task is as the run had it at the (newest) step: population based training may have changed it.
    datasets: any of the experiment's; those that the run evaluates (decodes) if empty. checkpoint: latest, best, all or
    a step. average: the weights are the mean of so many checkpoints, the newest up to that one or, of `best`, the best.
    overrides: settings of the task for this time, as `override_task` takes them. progress is called with a line for
    each result.
    Returns a JSON value {"run": its id, or None if the logdir has no run.json, "experiment", "logdir",
    kind: {dataset: {"step", metric: value}} of the last checkpoint, "all": {dataset: [{"step", metric: value}, ...]}},
    and of "decode" also "signatures": {dataset: {metric: which variant of a published one it is}}; with an average or
    overrides also "average": [steps], "set": {key: value}, and "recorded_in", the folder.
    As in the logs, a value that is not finite is None.
    Raises RequestError for what does not exist or is damaged, or a logdir in use.
    """
    of_run = read_experiment(logdir)
    experiment = override_task(of_run, overrides)
    info = read_info(logdir)
    names = list(datasets) or list(getattr(experiment, kind))
    if not names:
        raise RequestError(f"{experiment.name} names no dataset to {kind}; it has {', '.join(experiment.datasets)}")
    for name in names:
        if name not in experiment.datasets:
            raise RequestError(f"no dataset {name!r} in {experiment.name}; it has {', '.join(experiment.datasets)}")
        experiment.datasets[name].check()
    # The others stay: one of their metrics may be that of the best checkpoint.
    experiment = dataclasses.replace(
        experiment, **{kind: {**dict.fromkeys(names, Reading()), **getattr(experiment, kind)}}
    )
    best = experiment.train.checkpoints.best
    if average == 1:
        groups = [[step] for step in checkpoints.resolve(logdir, checkpoint, best)]
    else:
        groups = [checkpoint_average.resolve(logdir, checkpoint, average, best)]
    variant = Variant(averaged=tuple(sorted(groups[0])) if average > 1 else (), overrides=overrides)

    from raylingvo.actors.decoder import Decoder
    from raylingvo.actors.evaler import Evaler

    role_class = Evaler if kind == "eval" else Decoder
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with hold(logdir), contextlib.ExitStack() as opened:
        folder = variant.folder(logdir)
        roles = [opened.enter_context(contextlib.closing(role_class(experiment, name, folder))) for name in names]
        for steps in groups:
            step = max(steps)
            weights = checkpoint_average.restore_mean(logdir, steps, roles[0].abstract_weights)
            task = task_at(logdir, step, of_run, overrides)
            for name, role in zip(names, roles, strict=True):
                role.work_on(task)
                metrics = role.process(Arrival(step, time.time(), weights))
                results[name].append({"step": step, **json_values(metrics)})
                progress(f"{kind} {name} @ {step}{variant}")
    last = {name: records[-1] for name, records in results.items()}
    signatures = {name: role.signatures for name, role in zip(names, roles, strict=True) if isinstance(role, Decoder)}
    return {
        "run": info and info["id"],
        "experiment": experiment.name,
        "logdir": str(logdir),
        kind: last,
        "all": results,
        **({"signatures": signatures} if kind == "decode" else {}),
        **(variant.fields() | {"recorded_in": str(folder)} if variant else {}),
    }
