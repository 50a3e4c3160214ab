"""Moving averages of weights, which evaluate better than the weights themselves (arXiv:1412.6980, section 7.2)."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from raylingvo.training.state import TrainState, Weights

if TYPE_CHECKING:
    from raylingvo.experiment import Train


def averaged(
    settings: Train,
    average: Weights | tuple[()],
    weights: Weights,
    step: jax.Array,
    idle: Collection[str] = (),
) -> Weights | tuple[()]:
    """The average after a step: decay * average + (1 - decay) * weights, if there are averages.

    weights: after the update of the batch number `step`. Variables that are not trained are taken as they are, unless
    `train.ema_decay_moving_vars`. idle: paths of variables that the step leaves alone; their averages rest too. So the
    weights of one of several tasks are averaged over the steps of that task. Lingvo: ema_decay and ema_schedule of
    p.train; each task's own training updates its averages.
    """
    if not isinstance(average, Weights):
        return ()
    decay = settings.ema_schedule(step) if settings.ema_schedule is not None else jnp.float32(settings.ema_decay)

    def mix(path: Any, old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        if jax.tree_util.keystr(path, simple=True, separator="/") in idle:
            return old
        return (new + decay * (old - new)).astype(new.dtype)

    extra: Any = weights.extra
    if settings.ema_decay_moving_vars:
        extra = jax.tree_util.tree_map_with_path(mix, average.extra, extra)
    return Weights(jax.tree_util.tree_map_with_path(mix, average.params, weights.params), extra)


def exchanged(state: TrainState) -> TrainState:
    """The state with the averages in the place of the weights, and the reverse; the state itself without averages.

    So are snapshots and checkpoints: whoever reads weights gets what is to be evaluated. It is its own inverse.
    """
    if not isinstance(state.average, Weights):
        return state
    return state._replace(weights=state.average, average=state.weights)
