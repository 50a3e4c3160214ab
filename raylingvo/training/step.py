"""The train step: loss -> gradients -> update, in one jitted function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from raylingvo.metrics.means import accumulate
from raylingvo.training import update
from raylingvo.training.average import averaged
from raylingvo.training.learner import ONLY, TASK_LOSS, weighed_metric
from raylingvo.training.noise import with_noise
from raylingvo.training.paths import merge, names
from raylingvo.training.state import Model, TrainState, Weights

if TYPE_CHECKING:
    from raylingvo.experiment import Experiment


def step_settings(experiment: Experiment) -> tuple[Any, ...]:
    """All of an experiment that its train step depends on, but for the shapes of batches: equal if the steps are.

    Learning rates do not count: they are part of the state.
    """
    rates = {name: dataclasses.replace(learner, learning_rate=1.0) for name, learner in experiment.learners.items()}
    train = experiment.train
    parts = experiment.task, rates, experiment.resources.mesh
    noise = train.vn_std, train.vn_start_step, train.vn_variables
    averages = train.ema_decay, train.ema_schedule, train.ema_decay_moving_vars
    return *parts, *noise, *averages


def make_train_step(experiment: Experiment) -> Callable[[TrainState, Any], tuple[TrainState, jax.Array]]:
    """The pure function (state, batch) -> (next state, nonfinite_in_a_row i32[]).

    The second result repeats a field of the state, as an array of its own: the caller may read it after the state has
    been donated to the next step. An update whose loss or gradients are not finite leaves weights and optimizer as
    they were; its batch counts as consumed, its metrics do not count, and `num_skipped_updates` does.
    (Lingvo scales such a gradient by 0, with which Adam still moves: see `Learner.dropped_updates`.)
    Of several learners none makes an update if that of one is not finite.
    """
    task, learners, loss_names = experiment.task, experiment.learners, experiment.loss_names
    model = Model(task)
    several = ONLY not in learners
    filtered = any(learner.bprop_variable_filters for learner in learners.values())

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, jax.Array]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        params = state.weights.params
        parts = update.partition(learners, params)
        variables = (path for tree in state.weights for path, _ in names(tree))
        idle = frozenset(path for path in variables if not task.trains(path, batch))

        def losses_fn(parts: dict[str, Any]) -> Any:
            trained = _merged(params, parts)
            module = model.merge(Weights(with_noise(experiment.train, trained, state.step, rng), state.weights.extra))
            loss, metrics = task.loss(module, batch, rng)
            losses = {name: loss if name == TASK_LOSS else metrics[name][0] for name in loss_names.values()}
            return losses, (metrics, Model.split(module).extra)

        source = batch["source_id"][0] if filtered else None
        # Each loss has gradients of its own; the forward pass is the same.
        losses, pull_back, (metrics, extra) = jax.vjp(losses_fn, parts, has_aux=True)
        zeros = jax.tree.map(jnp.zeros_like, losses)
        grads = {name: pull_back(zeros | {name: jnp.ones_like(loss)})[0] for name, loss in losses.items()}
        gradients = {
            name: update.regularize(learner, grads[loss_names[name]][name], parts[name], idle, source)
            for name, learner in learners.items()
        }
        checked = [*losses.values(), *(part.norm for part in gradients.values())]
        for name, found in gradients.items():
            if learners[name].scale_gradients:
                gradients[name] = update.adjust(found, lambda grads: task.adjust_gradients(grads, batch))
            checked += [optax.tree.norm(gradients[name].grads)] if gradients[name] is not found else []
        finite = jnp.isfinite(checked[0])
        for value in checked[1:]:
            finite = finite & jnp.isfinite(value)
        good = finite.astype(jnp.float32)
        metrics = {name: (value, weight * good) for name, (value, weight) in metrics.items()}

        rates = state.learning_rate if several else {ONLY: state.learning_rate}
        before = state.opt_state if several else {ONLY: state.opt_state}
        opt_states, updated = {}, {}
        for name, learner in learners.items():
            multiplier = learner.schedule(learner.optimizer.schedule_step(before[name].slots, state.step))
            rate = rates[name] * multiplier
            _, weight = metrics.get(weighed_metric(loss_names[name]), (0.0, 1.0))
            made = update.apply(learner, gradients[name], finite, before[name], parts[name], rate, weight)
            updated[name], opt_states[name] = update.keep_idle(
                idle, (parts[name], before[name]), (made.params, made.state)
            )
            of_update = gradients[name].metrics | {"learning_rate": rate, "lr_schedule": multiplier}
            metrics |= {update.metric_name(key, name): (value, good) for key, value in of_update.items()}
            metrics |= {update.metric_name("grad_scale_all", name): (made.scale, 1.0)}
            if learner.drops_updates:
                metrics |= {update.metric_name("num_dropped_updates", name): (made.dropped.astype(jnp.float32), 1.0)}
        metrics |= {"has_nan_or_inf": (1.0 - good, 1.0), "num_skipped_updates": (1.0 - good, 1.0)}

        # What the forward pass has changed, statistics of a normalisation for example, counts if it is finite.
        extra = jax.tree.map(lambda new, old: jnp.where(finite, new, old), extra, state.weights.extra)
        weights = Weights(_merged(params, updated), extra)
        # Unlike the optimizer's (update.apply), this choice copies nothing: XLA fuses it with the average. With `cond`
        # there is a copy more (of a step of the tests' Regression on a CPU).
        average = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            averaged(experiment.train, state.average, weights, state.step, idle),
            state.average,
        )
        nonfinite_in_a_row = jnp.where(finite, 0, state.nonfinite_in_a_row + 1)
        next_state = state._replace(
            step=state.step + 1,
            weights=weights,
            opt_state=opt_states if several else opt_states[ONLY],
            average=average,
            totals=accumulate(state.totals, metrics),
            nonfinite_in_a_row=nonfinite_in_a_row,
        )
        return next_state, nonfinite_in_a_row

    return train_step


def _merged(params: Any, parts: dict[str, Any]) -> Any:
    for part in parts.values():
        params = merge(params, part)
    return params
