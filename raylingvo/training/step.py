"""The train step: loss -> gradients -> update, in one jitted function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from raylingvo.metrics.means import accumulate
from raylingvo.training.state import Model, TrainState, Weights

if TYPE_CHECKING:
    from raylingvo.experiment import Experiment


def make_train_step(experiment: Experiment) -> Callable[[TrainState, Any], tuple[TrainState, jax.Array]]:
    """The pure function (state, batch) -> (next state, nonfinite_in_a_row i32[]).

    The second result repeats a field of the state, as an array of its own: the caller may read it after the state has
    been donated to the next step. An update whose loss or gradients are not finite leaves weights and optimizer as
    they were; its batch counts as consumed, its metrics do not count, and `num_skipped_updates` does.
    (Lingvo scales such a gradient by 0, with which Adam still moves.)
    """
    task, learner = experiment.task, experiment.learner
    model = Model(task)
    optimizer = learner.build()

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, jax.Array]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)

        def loss_fn(params: Any) -> Any:
            module = model.merge(Weights(params, state.weights.extra))
            loss, metrics = task.loss(module, batch, rng)
            return loss, (metrics, Model.split(module).extra)

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (metrics, extra)), grads = grad_fn(state.weights.params)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        direction, opt_state = optimizer.update(grads, state.opt_state, state.weights.params)
        rate = state.learning_rate * learner.schedule(state.step)
        params = jax.tree.map(lambda p, d: (p - rate * d).astype(p.dtype), state.weights.params, direction)
        updated, kept = (Weights(params, extra), opt_state), (state.weights, state.opt_state)
        weights, opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, kept)

        good = finite.astype(jnp.float32)
        metrics = {name: (value, weight * good) for name, (value, weight) in metrics.items()} | {
            "learning_rate": (rate, good),
            "grad_norm/all": (grad_norm, good),
            "var_norm/all": (optax.tree.norm(weights.params), good),
            "num_skipped_updates": (1.0 - good, 1.0),
        }
        nonfinite_in_a_row = jnp.where(finite, 0, state.nonfinite_in_a_row + 1)
        next_state = state._replace(
            step=state.step + 1,
            weights=weights,
            opt_state=opt_state,
            totals=accumulate(state.totals, metrics),
            nonfinite_in_a_row=nonfinite_in_a_row,
        )
        return next_state, nonfinite_in_a_row

    return train_step
