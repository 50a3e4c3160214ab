"""How learners turn gradients into new weights: pure functions, called by the train step and nobody else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from raylingvo.errors import RequestError
from raylingvo.training.grad_norm_tracker import TrackerState
from raylingvo.training.learner import ONLY, Learner
from raylingvo.training.paths import matches, merge, names, select, shown, with_values


class LearnerState(NamedTuple):
    """What one learner remembers between steps."""

    slots: Any  # of the optimizer
    tracker: TrackerState | tuple[()]  # (): the learner has none


class Gradients(NamedTuple):
    """The gradients of one learner, regularisers included, before they are scaled."""

    grads: Any
    norm: jax.Array  # f32[], global, before `Task.adjust_gradients`
    metrics: dict[str, jax.Array]


class Update(NamedTuple):
    """What an update comes to."""

    params: Any
    state: LearnerState
    scale: jax.Array  # f32[], of the gradients all together: 0 if the update is dropped
    dropped: jax.Array  # bool[], whether for its norm, though it is finite


def init(learner: Learner, params: Any) -> LearnerState:
    """The state before the first step. params: the variables that the learner trains."""
    tracker = learner.grad_norm_tracker
    return LearnerState(learner.optimizer.build().init(params), tracker.init() if tracker else ())


def metric_names(learner: Learner, params: Any) -> list[str]:
    """What the train step reports of one learner. params: the variables that it trains."""
    found = ["learning_rate", "lr_schedule", "grad_norm/all", "var_norm/all", "grad_scale_all"]
    found += ["num_dropped_updates"] if learner.drops_updates else []
    found += ["l2_loss"] if learner.l2_regularizer_weight is not None else []
    found += ["l1_loss"] if learner.l1_regularizer_weight is not None else []
    paths = [path for path, _ in names(params)] if learner.report_variable_norms else []
    return found + [f"{kind}/{path}" for path in paths for kind in ("grad_norm", "var_norm")]


def metric_name(name: str, learner: str) -> str:
    """The name of a metric of one learner; with several, each has its own."""
    return name if learner == ONLY else f"{name}/{learner}"


def learner_key(name: str, field: str | None = None) -> str:
    """The dotted key of a learner, or of a field of it, in an experiment."""
    return ".".join(["learner", *([] if name == ONLY else [name]), *([] if field is None else [field])])


def partition(learners: Mapping[str, Learner], params: Any) -> dict[str, Any]:
    """The variables of each learner, as nested dicts. Raises RequestError if one has none, or two have the same."""
    parts = {name: select(params, learner.trains) for name, learner in learners.items()}
    owners: dict[str, str] = {}
    for name, part in parts.items():
        if not part:
            raise RequestError(
                f"{learner_key(name)}: bprop_variable_filter and bprop_variable_exclusion leave no variable to train; "
                f"there are {shown([path for path, _ in names(params)])}"
            )
        for path, _ in names(part):
            if path in owners:
                raise RequestError(
                    f"{learner_key(name)} and {learner_key(owners[path])} both train {path}; "
                    "tell them apart by bprop_variable_filter"
                )
            owners[path] = name
    return parts


def regularize(
    learner: Learner, grads: Any, params: Any, idle: Collection[str] = (), source: jax.Array | None = None
) -> Gradients:
    """Adds the gradients of L2 and L1, masks by dataset, and takes the norm.

    Metrics: l2_loss and l1_loss, if used, and norms. idle: variables that the step leaves alone. source: i32[], of
    which dataset of a mixture the batch is; for `bprop_variable_filters` only.
    """
    metrics = {}
    for field, loss_of, gradient_of in (
        ("l2", lambda p: 0.5 * jnp.sum(jnp.square(p)), lambda p: p),
        ("l1", lambda p: jnp.sum(jnp.abs(p)), jnp.sign),
    ):
        weight = getattr(learner, f"{field}_regularizer_weight")
        if weight is None:
            continue
        skipped = matches(learner.skip_lp_regularization)
        chosen, part = (
            select(tree, lambda path, skipped=skipped: not (skipped(path) or path in idle)) for tree in (params, grads)
        )
        losses = [loss_of(p.astype(jnp.float32)) for p in jax.tree.leaves(chosen)]
        metrics[f"{field}_loss"] = weight * sum(losses, jnp.zeros((), jnp.float32))
        grads = merge(grads, jax.tree.map(lambda g, p, w=weight, of=gradient_of: g + w * of(p), part, chosen))
    if learner.bprop_variable_filters:
        filters = [matches(pattern) for pattern in learner.bprop_variable_filters]
        masks = {path: jnp.array([found(path) for found in filters])[source] for path, _ in names(grads)}
        grads = with_values(grads, {path: jnp.where(masks[path], g, jnp.zeros_like(g)) for path, g in names(grads)})
    norm = optax.tree.norm(grads)
    metrics |= {"grad_norm/all": norm, "var_norm/all": optax.tree.norm(params)}
    if learner.report_variable_norms:
        for kind, tree in (("grad_norm", grads), ("var_norm", params)):
            metrics |= {f"{kind}/{path}": optax.tree.norm(x) for path, x in names(tree)}
    return Gradients(grads, norm, metrics)


def adjust(gradients: Gradients, adjusted: Callable[[Mapping[str, jax.Array]], Mapping[str, jax.Array]]) -> Gradients:
    """The gradients as `Task.adjust_gradients` wants them: a function of arrays by path. Norms are those before."""
    before = dict(names(gradients.grads))
    after = adjusted(before)
    if after is before:
        return gradients
    got, want = (
        {path: f"{jnp.result_type(x)}{jnp.shape(x)}" for path, x in arrays.items()} for arrays in (after, before)
    )
    if got != want:
        wrong = [path for path in {**want, **got} if got.get(path) != want.get(path)]
        differences = (f"{path}: {got.get(path, 'none')} for {want.get(path, 'none')}" for path in wrong)
        raise ValueError(
            "adjust_gradients must return gradients of the same names, shapes and dtypes "
            f"(got {', '.join(differences)})"
        )
    return gradients._replace(grads=with_values(gradients.grads, after))


def apply(
    learner: Learner,
    gradients: Gradients,
    finite: jax.Array,
    state: LearnerState,
    params: Any,
    rate: jax.Array,
    weight: jax.Array | float = 1.0,
) -> Update:
    """Scales the gradients and updates the weights, if the update is not dropped.

    finite: bool[], whether the whole step is; if not, its update is dropped. rate: f32[], the schedule included.
    weight: f32[], of the loss.
    """
    grads, norm, keep, scale = gradients.grads, gradients.norm, finite, jnp.ones((), jnp.float32)
    tracker = state.tracker
    if learner.scale_gradients:
        if clip := learner.clip_gradient_norm_to_value:
            scale = jnp.minimum(1.0, clip / norm)
            grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
        if clip := learner.clip_gradient_single_norm_to_value:
            grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, clip / optax.tree.norm(g)).astype(g.dtype), grads)
    if learner.drops_updates:
        if learner.grad_norm_to_clip_to_zero:
            keep = keep & (norm < learner.grad_norm_to_clip_to_zero)
        if learner.grad_norm_tracker is not None:
            assert isinstance(tracker, TrackerState)
            usual, tracker = learner.grad_norm_tracker(norm, finite, tracker)
            keep = keep & usual
    if learner.dropped_updates == "zero":
        grads = jax.tree.map(lambda g: jnp.where(keep, g, jnp.zeros_like(g)), grads)

    def updated_by(grads: Any, slots: Any, params: Any) -> tuple[Any, Any]:
        decrements, slots = learner.optimizer.build().update(grads, slots, params, rate=rate, weight=weight)
        return jax.tree.map(lambda p, d: (p - d).astype(p.dtype), params, decrements), slots

    if learner.dropped_updates == "skip":
        # Not `where`: with a choice for each number XLA copies weights and slots before it overwrites them. On a CPU
        # these were 300 copies, 5 % of a Transformer's step.
        updated, slots = jax.lax.cond(
            keep, updated_by, lambda grads, slots, params: (params, slots), grads, state.slots, params
        )
    else:
        updated, slots = updated_by(grads, state.slots, params)
    return Update(updated, LearnerState(slots, tracker), jnp.where(keep, scale, 0.0), finite & ~keep)


def keep_idle(idle: Collection[str], before: Any, after: Any) -> Any:
    """`after`, with the leaves of `before` for the variables `idle`.

    Two trees of one structure: variables, or slots that an optimizer keeps in nested dicts like those of variables,
    perhaps in dicts of its own below them.
    """
    if not idle:
        return after
    starts = tuple(f"{path}/" for path in idle)

    def choose(path: Any, old: Any, new: Any) -> Any:
        name = "".join(f"{key.key}/" for key in path if isinstance(key, jax.tree_util.DictKey))
        return old if name.startswith(starts) else new

    return jax.tree_util.tree_map_with_path(choose, before, after)
