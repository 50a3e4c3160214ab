"""Whether the metrics that steer a run are ones that its Evalers and Decoders report."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any

import jax

from raylingvo.data.host_fields import device_fields
from raylingvo.errors import UnknownMetric
from raylingvo.experiment import Experiment
from raylingvo.models.task import Task
from raylingvo.training.state import Model


def check_watched(experiment: Experiment, dataset: str, *reported: Callable[[], Iterable[str]]) -> None:
    """Raises UnknownMetric if the experiment goes by a metric of this dataset that is not among those reported.

    reported: what gives the names of the metrics of a role; asked only if there are names still to be found.
    """
    known: list[str] = []
    to_ask = list(reported)
    for field, metric in experiment.watched_metrics().items():
        of, _, name = metric.partition("/")
        if of != dataset:
            continue
        while name not in known and to_ask:
            known.extend(to_ask.pop(0)())
        if name not in known:
            closest = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
            given = ", ".join(dict.fromkeys(known)) or "none"
            hint = f"did you mean {' or '.join(closest)}?" if closest else f"the task gives {given}"
            raise UnknownMetric(f"{field}: {_roles(experiment, dataset)} metric {name!r} (got {metric!r}); {hint}")


def _roles(experiment: Experiment, dataset: str) -> str:
    if dataset not in experiment.decode:
        return "the evaluation has no"
    return "neither evaluation nor decoding has a" if dataset in experiment.eval else "the decoding has no"


def evaluated_names(task: Task, model: Model, samples: Iterable[Any]) -> list[str]:
    """The names of the metrics that an evaluation gives. Nothing is computed.

    samples: of all kinds of batches, since several tasks have different metrics.
    """

    def metrics(weights: Any, batch: Any) -> Any:
        return task.eval_metrics(model.merge(weights), batch)

    found: dict[str, Any] = {}
    for batch in samples:
        found |= jax.eval_shape(metrics, model.abstract, device_fields(batch))
    return list(found)
