"""What only the experiment's own code tells of a sweep before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from raylingvo.errors import RequestError
from raylingvo.monitor import text

# As the roles' (remote.py), this module must not import JAX: it would not know where it is to work.
if TYPE_CHECKING:
    from raylingvo.actors.driver import Order
    from raylingvo.experiment import Experiment


class Outlook(NamedTuple):
    decoders: Sequence[str]  # datasets that trials have to decode, since nothing else gives the metric
    nbytes: int  # of a checkpoint


def look_ahead(order: Order, metric: str, variants: Sequence[Mapping[str, Any]]) -> Outlook:
    """Looks at the experiment of an order, with shapes only; in a process that works on nothing else.

    variants: other settings with which it must have the same weights and slots. Raises RequestError if there is no such
    metric, or a variant has others.
    """
    experiment = order.take_place()
    decoders = _decoders(experiment, metric)

    import jax

    from raylingvo import config

    train = experiment.train
    batches = list(experiment.datasets[train.dataset].train_batches(train.batch_size, train.seed).samples())
    first = _shapes(experiment, batches)
    for variant in variants:
        if _shapes(config.override(experiment, variant), batches) != first:
            ((key, value),) = variant.items()
            raise RequestError(
                f"--scheduler pbt: trials with {key}={value} have other weights; none can take another's"
            )
    leaves = jax.tree.leaves(_state(experiment, batches))
    return Outlook(decoders, sum(leaf.size * leaf.dtype.itemsize for leaf in leaves))


def said_of_memory(trials: int, nbytes: int, room: int) -> list[str]:
    """Lines about the train states that the hub has of trials that do not run, for others to take.

    trials: how many may leave one. nbytes: of a state. room: bytes of the object store.
    """
    most = trials * nbytes
    lines = [
        f"in memory at most a state of {text.size(nbytes)} for each trial that waits or has ended: {text.size(most)} "
        f"(object store: {text.size(room)})"
    ]
    if most > room // 2:  # the rest is for what trials that run need themselves
        lines.append(
            "that is more than half of the object store: Ray may move states to disk, and who takes one waits for it; "
            "a Ray that was started with more --object-store-memory has room"
        )
    return lines


def _decoders(experiment: Experiment, metric: str) -> list[str]:
    from raylingvo.actors.watched import check_watched, evaluated_names
    from raylingvo.training.state import Model

    dataset, _, name = metric.partition("/")
    if dataset not in experiment.eval:
        return [dataset]
    batches = experiment.datasets[dataset].eval_batches(experiment.reading_batch_size(experiment.eval[dataset]))
    names = evaluated_names(experiment.task, Model(experiment.task), batches.samples())
    if name in names:
        return []
    if dataset in experiment.decode:
        return [dataset]  # it checks the metric when it starts: only outputs tell which ones it gives
    try:
        check_watched(experiment, dataset, lambda: names)
    except RequestError as error:
        raise RequestError(str(error).replace("train.checkpoints.best.metric", "--metric")) from error
    raise AssertionError(f"{metric} is not watched")


def _shapes(experiment: Experiment, batches: Sequence[Any]) -> Any:
    import jax

    leaves, tree = jax.tree.flatten(_state(experiment, batches)._replace(totals=None))
    return [(leaf.shape, leaf.dtype) for leaf in leaves], tree


def _state(experiment: Experiment, batches: Sequence[Any]) -> Any:
    from raylingvo.training.state import abstract_state

    return abstract_state(experiment, *batches)
