"""Several tasks in one model, with parts that they share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from raylingvo.config import FrozenDict
from raylingvo.errors import RequestError
from raylingvo.metrics.corpus_scores import CorpusScores
from raylingvo.models.task import Batch, Task, WeightedMetrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiTask(Task):
    """Tasks by name. Each batch is of one of them (`data.of_task.OfTask`), and so is each step.

    shared: paths of modules or variables, such as `encoder` or `encoder/layers`, that tasks have in common: all tasks
    that have the path use the first one's, in every place where they hold what is there (a table that is also the
    softmax, say). Metrics are named METRIC/TASK; train metrics have `loss` of all as well.
    A shared part is stored with the task whose name is first in the alphabet. A step changes only the weights that its
    task uses, their averages, and what optimizers remember of each; what they count for all weights alike, such as
    Adam's number of updates, counts every step. (Lingvo: core/multitask_model.py.)
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
        own_path = _own_paths(self)[name].get(path)
        return own_path is not None and self.tasks[name].trains(own_path, own)

    def adjust_gradients(self, grads: Mapping[str, jax.Array], batch: Batch) -> Mapping[str, jax.Array]:
        name, own = self._split(batch)
        own_paths = {path: own_path for path, own_path in _own_paths(self)[name].items() if path in grads}
        given = {own_path: grads[path] for path, own_path in own_paths.items()}
        adjusted = self.tasks[name].adjust_gradients(given, own)
        if adjusted is given:
            return grads
        if wrong := sorted(adjusted.keys() ^ given.keys()):
            raise ValueError(
                f"adjust_gradients of the task {name} must return the names that it got, and no others "
                f"(not so {', '.join(wrong)})"
            )
        return {**grads, **{path: adjusted[own_path] for path, own_path in own_paths.items()}}

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

    def corpus_scores(self, outputs: Sequence[Mapping[str, Any]]) -> CorpusScores:
        metrics: dict[str, float] = {}
        signatures: dict[str, str] = {}
        for name, task in self.tasks.items():
            own = [
                {key: x for key, x in output.items() if key != "task"} for output in outputs if output["task"] == name
            ]
            if own:
                scores = task.corpus_scores(own)
                metrics |= _named(scores.metrics, name)
                signatures |= _named(scores.signatures, name)
        return CorpusScores(metrics, signatures)

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
        for path in config.shared:  # a task may hold the parts of two paths as one
            if len({id(part) for part in self._parts(path, config.tasks).values()}) > 1:
                raise RequestError(
                    f"shared: {path!r} cannot be shared beside the other paths: some task holds the parts of two as one"
                )

    def _parts(self, path: str, names: Iterable[str]) -> dict[str, Any]:
        """What is at a path, by task; without tasks that have no such path."""
        found = {name: _descend(getattr(self, name), path.split("/")) for name in names}
        return {name: part for name, part in found.items() if part is not None}

    def _share(self, path: str, names: Sequence[str]) -> None:
        parts = self._parts(path, names)
        if len(parts) < 2:
            raise RequestError(
                f"shared: {path!r} must be part of at least two tasks (it is of {', '.join(parts) or 'none'})"
            )
        first, *others = parts
        for name in others:
            if _shapes(parts[name]) != _shapes(parts[first]):
                raise RequestError(f"shared: {path!r} is not of the same shapes in {first} and {name}")
            _exchange(getattr(self, name), parts[name], parts[first])


def _exchange(module: nnx.Module, old: Any, new: Any) -> None:
    """Puts `new`, and what is in it, in the place of `old` wherever `module` holds it."""
    ours = _nodes(new)
    exchanged = {id(node): ours[path] for path, node in _nodes(old).items() if path in ours}
    for holder in _nodes(module).values():
        if isinstance(holder, nnx.Variable):
            continue
        if isinstance(holder, list | nnx.List):
            for i, value in enumerate(holder):
                holder[i] = exchanged.get(id(value), value)
            continue
        for name, value in list(vars(holder).items()):
            if id(value) in exchanged:
                setattr(holder, name, exchanged[id(value)])


def _nodes(part: Any) -> dict[tuple[Any, ...], Any]:
    """By path, each once: the part itself, and all modules, lists and variables in it."""
    kinds = nnx.Module | nnx.Variable | list | nnx.List
    return {path: node for path, node in nnx.iter_graph(part) if isinstance(node, kinds)}


def _descend(module: Any, path: Sequence[str]) -> Any:
    for name in path:
        module = _get(module, name)
        if module is None:
            return None
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


def _named(metrics: Mapping[str, Any], task: str) -> dict[str, Any]:
    return {f"{metric}/{task}": value for metric, value in metrics.items()}


@functools.lru_cache(maxsize=16)
def _own_paths(config: MultiTask) -> dict[str, dict[str, str]]:
    """For each task: the path of each variable that it uses, in the whole model -> its path in the task's own."""
    module = nnx.eval_shape(lambda: config.init(nnx.Rngs(0)))
    paths = {id(node): path for path, node in _variables(module)}
    return {name: {paths[id(node)]: path for path, node in _variables(_part(module, name))} for name in config.tasks}


def _variables(module: nnx.Module) -> Iterator[tuple[str, nnx.Variable]]:
    """(path, variable), each once, under the path that it has in a state."""
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Variable):
            yield "/".join(map(str, path)), node
