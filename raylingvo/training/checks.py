"""What is wrong with an experiment and can be known from its model and a batch, before anything is compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from raylingvo.data.mixing import MixWithinBatches
from raylingvo.errors import RequestError
from raylingvo.training import update
from raylingvo.training.learner import TASK_LOSS, weighed_metric
from raylingvo.training.optimizers import DynamicAccumulator, accumulates, patterns
from raylingvo.training.paths import check_found, names

if TYPE_CHECKING:
    from raylingvo.experiment import Experiment


def check_variables(experiment: Experiment, params: Mapping[str, Any]) -> None:
    """Raises RequestError if learners share or lack variables, a pattern matches no weight, or metrics share a name.

    params: nested dicts of all weights. An expression of a learner must match a weight of the model, which need not be
    the learner's. Expressions that nothing uses, such as `vn_variables` without noise, are not looked at.
    """
    paths = [path for path, _ in names(params)]
    if experiment.train.vn_std:
        check_found("train.vn_variables", experiment.train.vn_variables, paths)
    for name, learner in experiment.learners.items():
        check_found(update.learner_key(name, "bprop_variable_filter"), learner.bprop_variable_filter, paths)
        check_found(update.learner_key(name, "bprop_variable_exclusion"), learner.bprop_variable_exclusion, paths)
        if learner.l1_regularizer_weight is not None or learner.l2_regularizer_weight is not None:
            check_found(update.learner_key(name, "skip_lp_regularization"), learner.skip_lp_regularization, paths)
        for pattern in learner.bprop_variable_filters:
            check_found(update.learner_key(name, "bprop_variable_filters"), pattern, paths)
        for pattern in patterns(learner.optimizer):
            check_found(update.learner_key(name, "optimizer.parts"), pattern, paths)
    for name, part in update.partition(experiment.learners, params).items():
        if experiment.learners[name].report_variable_norms and "all" in dict(names(part)):
            key = update.learner_key(name, "report_variable_norms")
            raise RequestError(f"{key}: grad_norm/all is of all variables, but there is one that is named 'all'")


def check_batch(experiment: Experiment, batch: Any, metrics: Mapping[str, Any], paths: Sequence[str]) -> None:
    """Raises RequestError if a learner cannot work with such a batch.

    metrics: the shapes of what `Task.loss` returns for it; paths: of all weights.
    """
    task = type(experiment.task).__name__
    for name, of in experiment.loss_names.items():
        if of == TASK_LOSS:
            weighed = weighed_metric(of)
            if isinstance(experiment.learners[name].optimizer, DynamicAccumulator) and weighed not in metrics:
                raise RequestError(
                    f"{update.learner_key(name, 'optimizer')}: a DynamicAccumulator counts the weight of the metric "
                    f"{weighed!r}, which the loss of {task} lacks; it has {', '.join(metrics)}"
                )
            continue
        key = update.learner_key(name, "loss_name")
        if of not in metrics:
            raise RequestError(f"{key}: the loss of {task} has no metric {of!r}; it has {', '.join(metrics)}")
        value = metrics[of][0]
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise RequestError(f"{key}: the metric {of!r} of {task} has no gradient: it is {value.dtype}")
    data = experiment.datasets[experiment.train.dataset]
    for name, learner in experiment.learners.items():
        if filters := learner.bprop_variable_filters:
            sources = () if isinstance(data, MixWithinBatches) else getattr(data, "datasets", ())
            if "source_id" not in batch or len(sources) != len(filters):
                raise RequestError(
                    f"{update.learner_key(name, 'bprop_variable_filters')} must be one for each dataset of a mixture "
                    f"batch by batch (got {len(filters)}; train.dataset is {type(data).__name__} of {len(sources)} "
                    "such ones)"
                )
    rests = not all(experiment.task.trains(path, batch) for path in paths)
    for name, learner in experiment.learners.items():
        if rests and accumulates(learner.optimizer):
            key = update.learner_key(name, "optimizer")
            raise RequestError(f"{key}: an Accumulator counts steps that change all variables; this task's do not")
