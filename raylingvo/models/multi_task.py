"""Several tasks in one model, with parts that they share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from raylingvo.config import FrozenDict
from raylingvo.errors import RequestError
from raylingvo.models.task import Batch, Task, WeightedMetrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiTask(Task):
    """Tasks by name. Each batch is of one of them (`data.of_task.OfTask`), and so is each step.

    shared: paths of modules or variables, such as `encoder` or `encoder/layers`, that tasks have in common: all tasks
    that have the path use the first one's. Metrics are named METRIC/TASK; train metrics have `loss` of all as well.
    A shared part is stored with the task whose name is first in the alphabet. A step changes only the weights that its
    task uses, and what optimizers remember of each; what they count for all weights alike, such as Adam's number of
    updates, counts every step. (Lingvo: core/multitask_model.py.)
    """

    tasks: Mapping[str, Task]
    shared: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", FrozenDict(self.tasks))
        if not self.tasks or not all(name.isidentifier() for name in self.tasks):
            raise ValueError(f"tasks must be named by letters, digits and _ (got {', '.join(self.tasks) or 'none'})")

    def init(self, rngs: nnx.Rngs) -> MultiTaskModule:
        return MultiTaskModule(self, rngs)

    def loss(self, model: nnx.Module, batch: Batch, rng: jax.Array) -> tuple[jax.Array, WeightedMetrics]:
        name, own = self._split(batch)
        loss, metrics = self.tasks[name].loss(_part(model, name), own, rng)
        total = {"loss": metrics["loss"]} if "loss" in metrics else {}
        return loss, total | _named(metrics, name)

    def trains(self, path: str, batch: Batch) -> bool:
        name, own = self._split(batch)
        owner, _, rest = path.partition("/")
        used = owner == name
        # What is shared is stored with the first task that has it.
        if not used and any(rest == part or rest.startswith(f"{part}/") for part in self.shared):
            used = rest in _variables(self.tasks[name])
        return used and self.tasks[name].trains(rest, own)

    def eval_metrics(self, model: nnx.Module, batch: Batch) -> WeightedMetrics:
        name, own = self._split(batch)
        return _named(self.tasks[name].eval_metrics(_part(model, name), own), name)

    def decode(self, model: nnx.Module, batch: Batch) -> Any:
        name, own = self._split(batch)
        return self.tasks[name].decode(_part(model, name), own)

    def postprocess(
        self, decoded: Any, batch: Mapping[str, np.ndarray]
    ) -> tuple[list[tuple[str, dict[str, Any]]], WeightedMetrics]:
        name, own = self._split(batch)
        outputs, metrics = self.tasks[name].postprocess(decoded, own)
        return [(key, {"task": name, **output}) for key, output in outputs], _named(metrics, name)

    def _split(self, batch: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The task that a batch is of, and the batch as that task knows it."""
        names = {field.partition("/")[0] for field in batch if "/" in field}
        if len(names) != 1 or not names <= self.tasks.keys():
            raise RequestError(
                f"a batch must be of one of the tasks {', '.join(self.tasks)} (got fields {', '.join(batch)}); "
                "wrap the dataset of each task in OfTask"
            )
        (name,) = names
        return name, {field.removeprefix(f"{name}/"): values for field, values in batch.items()}


class MultiTaskModule(nnx.Module):
    """The modules of all tasks, `name` by `name`; what is shared is the same object."""

    def __init__(self, config: MultiTask, rngs: nnx.Rngs) -> None:
        for name, task in config.tasks.items():
            setattr(self, name, task.init(rngs))
        for path in config.shared:
            self._share(path, list(config.tasks))

    def _share(self, path: str, names: Sequence[str]) -> None:
        *parents, last = path.split("/")
        owners = {name: _descend(getattr(self, name), parents) for name in names}
        having = [name for name, owner in owners.items() if owner is not None and _get(owner, last) is not None]
        if len(having) < 2:
            raise RequestError(
                f"shared: {path!r} must be part of at least two tasks (it is of {', '.join(having) or 'none'})"
            )
        first, *others = having
        part = _get(owners[first], last)
        for name in others:
            other = _get(owners[name], last)
            if _shapes(other) != _shapes(part):
                raise RequestError(f"shared: {path!r} is not of the same shapes in {first} and {name}")
            if isinstance(owners[name], list | nnx.List):
                owners[name][int(last)] = part
            else:
                setattr(owners[name], last, part)


def _descend(module: Any, path: Sequence[str]) -> Any:
    for name in path:
        module = _get(module, name)
    return module


def _get(module: Any, name: str) -> Any:
    """The part of this name, or number in a list; None if there is none."""
    if isinstance(module, list | nnx.List):
        return module[int(name)] if name.isdigit() and int(name) < len(module) else None
    part = getattr(module, name, None)
    return part if isinstance(part, nnx.Module | nnx.Variable | list | nnx.List) else None


def _shapes(part: Any) -> Any:
    return [
        (path, x.shape)
        for path, x in jax.tree_util.tree_leaves_with_path(nnx.state(part) if isinstance(part, nnx.Module) else part)
    ]


def _part(model: nnx.Module, name: str) -> nnx.Module:
    return getattr(model, name)


def _named(metrics: WeightedMetrics, task: str) -> WeightedMetrics:
    return {f"{metric}/{task}": pair for metric, pair in metrics.items()}


@functools.lru_cache(maxsize=16)
def _variables(task: Task) -> frozenset[str]:
    """The paths of a task's own variables."""
    state = nnx.state(nnx.eval_shape(lambda: task.init(nnx.Rngs(0))))
    return frozenset("/".join(map(str, path)) for path, _ in nnx.to_flat_state(state))
