"""The train state: everything that determines the rest of a run, except the position in the input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from raylingvo.errors import RequestError
from raylingvo.metrics.means import Totals, zeros_like_metrics
from raylingvo.models.layers.variables import logical_axes
from raylingvo.parallel.layout import ONE_DEVICE, OneDevice
from raylingvo.training import update
from raylingvo.training.checks import check_batch, check_variables
from raylingvo.training.learner import ONLY
from raylingvo.training.paths import names

if TYPE_CHECKING:
    from raylingvo.experiment import Experiment
    from raylingvo.models.task import Task

# Nested dicts of arrays, keyed by the attribute names of the module tree: {"conv1": {"kernel": f32[5, 5, 1, 20]}, ...}
Variables = dict[str, Any]

# What the train step adds to the task's own metrics, besides those of each learner.
STEP_METRICS = ("has_nan_or_inf", "num_skipped_updates")


class Weights(NamedTuple):
    """What a model computes with: what an Evaler or Decoder needs of a train state."""

    params: Variables  # trained
    extra: Variables  # the other variables of the module, such as moving statistics


class TrainState(NamedTuple):
    """The state between two steps, as a pytree of arrays."""

    step: jax.Array  # i32[], batches consumed; updates made are fewer if some were skipped
    weights: Weights
    opt_state: Any  # update.LearnerState, or with several learners one by name
    # f32[] before the schedule; by name with several. An array, so that it can change without recompiling.
    learning_rate: Any
    rng: jax.Array  # u32[2], key data; step k uses fold_in(rng, k), so it never changes
    totals: Totals  # of the metrics since the last report
    nonfinite_in_a_row: jax.Array  # i32[], skipped updates since the last good one
    average: Weights | tuple[()] = ()  # moving averages, if there are to be any (training/average.py)


class Model:
    """A task's model, split into its variables and the rest, with the shapes of the variables."""

    def __init__(self, task: Task):
        """Raises RequestError if a variable is a random key."""
        module = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))
        self.logical_axes = logical_axes(module)  # by path
        self._definition, params, extra = nnx.split(module, nnx.Param, ...)
        self.abstract = Weights(nnx.to_pure_dict(params), nnx.to_pure_dict(extra))
        _refuse_random_keys(task, self.abstract)

    def merge(self, weights: Weights) -> nnx.Module:
        """The module that computes with `weights`. Changes to its variables do not reach `weights`."""
        # Without copy, updating a variable inside value_and_grad raises TraceContextError.
        return nnx.merge(self._definition, nnx.State(weights.params), nnx.State(weights.extra), copy=True)

    @staticmethod
    def split(module: nnx.Module) -> Weights:
        """The variables of a module as pure dicts."""
        _, params, extra = nnx.split(module, nnx.Param, ...)
        return Weights(nnx.to_pure_dict(params), nnx.to_pure_dict(extra))


def _refuse_random_keys(task: Task, weights: Weights) -> None:
    """Neither a snapshot nor a checkpoint can hold JAX's typed keys, which `rngs` given to a module leave in it."""
    for variables in weights:
        for path, x in jax.tree_util.tree_leaves_with_path(variables):
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise RequestError(
                    f"{type(task).__name__}.init: the variable {name} is a random key ({x.dtype}); draw randomness "
                    "from the `rng` argument of Task.loss instead (dropout: nnx.Dropout(rate) without rngs, called "
                    "with rngs=rng)"
                )


def init_state(experiment: Experiment, *batches: Any, layout: OneDevice = ONE_DEVICE) -> TrainState:
    """The state before the first step, a function of the experiment only.

    batches: a train batch of each kind that there is, or the shapes of one; they give the names of the metrics.
    layout: where the state is to lie.
    Raises RequestError for what does not fit together (training/checks.py).
    """
    init = _initializer(experiment, *batches)
    # One program instead of one per variable: most of the time is compilation. Seed and rates are given to it, and
    # not part of it: others need no other program.
    given = jax.device_get(_given(experiment))
    shardings = layout.shardings(jax.eval_shape(init, *given)) if layout.spread else None
    return jax.jit(init, out_shardings=shardings)(*given)


def abstract_state(experiment: Experiment, *batches: Any) -> TrainState:
    """The shapes of `init_state`'s. Nothing is computed."""
    return jax.eval_shape(_initializer(experiment, *batches), *jax.eval_shape(lambda: _given(experiment)))


def _given(experiment: Experiment) -> tuple[Any, Any]:
    return jax.random.key_data(jax.random.key(experiment.train.seed)), learning_rates(experiment)


def _initializer(experiment: Experiment, *batches: Any) -> Callable[[Any, Any], TrainState]:
    """The function (key data of the seed, learning rates) -> state before the first step."""
    task = experiment.task
    model = Model(task)

    def loss_metrics(weights: Weights, batch: Any) -> Any:
        return task.loss(model.merge(weights), batch, jax.random.key(0))[1]

    learners = experiment.learners
    check_variables(experiment, model.abstract.params)
    paths = [path for path, _ in names(model.abstract.params)]
    metrics: dict[str, Any] = {}
    for batch in batches:
        own = jax.eval_shape(loss_metrics, model.abstract, batch)
        check_batch(experiment, batch, own, paths)
        metrics |= own
    parts = update.partition(learners, model.abstract.params)
    of_learners = [
        update.metric_name(metric, name)
        for name, learner in learners.items()
        for metric in update.metric_names(learner, parts[name])
    ]
    metric_names = [*metrics, *of_learners, *STEP_METRICS]

    def init(seed_key: Any, rates: Any) -> TrainState:
        init_rng, step_rng = jax.random.split(jax.random.wrap_key_data(seed_key))
        weights = Model.split(task.init(nnx.Rngs(init_rng)))
        parts = update.partition(learners, weights.params)
        opt_state = {name: update.init(learner, parts[name]) for name, learner in learners.items()}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            weights=weights,
            opt_state=opt_state.get(ONLY, opt_state),
            learning_rate=rates,
            rng=jax.random.key_data(step_rng),
            totals=zeros_like_metrics(dict.fromkeys(metric_names)),
            nonfinite_in_a_row=jnp.zeros((), jnp.int32),
            average=jax.tree.map(jnp.copy, weights) if experiment.train.averages else (),
        )

    return init


def learning_rates(experiment: Experiment, factor: float = 1.0) -> Any:
    """The learners' rates before their schedules, times `factor`: f32[], by name with several."""
    learners = experiment.learners
    rates = {name: jnp.asarray(learner.learning_rate * factor, jnp.float32) for name, learner in learners.items()}
    return rates.get(ONLY, rates)


def variable_lines(weights: Weights, logical_axes: Mapping[str, Sequence[str | None]]) -> list[str]:
    """A line per variable, and the total of the trained ones: model_analysis.txt.

    Path, shape, dtype, count, the logical axes if it names any (`Model.logical_axes`), and, of one that is spread over
    a mesh, the mesh axes that split it.
    """
    lines = []
    for kind, variables in (("", weights.params), ("  (not trained)", weights.extra)):
        for path, x in jax.tree_util.tree_leaves_with_path(variables):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            line = f"{name:<40} {x.shape!s:<20} {x.dtype!s:<10} {np.prod(x.shape, dtype=int):>14,}{kind}"
            axes = logical_axes.get(name, ())
            line += f"  [{', '.join(map(str, axes))}]" if any(axes) else ""
            spec = getattr(getattr(x, "sharding", None), "spec", ())  # that of one device has none
            line += f"  split along {', '.join(map(str, spec))}" if any(spec) else ""
            lines.append(line)
    return [*lines, f"total: {num_params(weights):,}"]


def num_params(weights: Weights) -> int:
    """The number of trained weights."""
    return sum(int(np.prod(x.shape, dtype=int)) for x in jax.tree.leaves(weights.params))
