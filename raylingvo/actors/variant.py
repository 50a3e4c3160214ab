"""What `eval` and `decode` make of a run besides its own weights and settings: averaged weights, another search."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylingvo import config
from raylingvo.errors import RequestError
from raylingvo.experiment import Experiment
from raylingvo.models.task import Task
from raylingvo.monitor.atomic import write_atomically
from raylingvo.training import checkpoints
from raylingvo.training.paths import names
from raylingvo.training.state import Model

if TYPE_CHECKING:  # of roles without actors, for which there is no Ray
    from raylingvo.actors.within import Adopted

_TASK = "task."
_LONGEST_NAME = 100  # of a folder; file systems take 255 bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """How results differ from those of a run's own roles. `bool(variant)`: whether they do."""

    averaged: tuple[int, ...] = ()  # steps whose weights are averaged, ascending; none for a checkpoint as it is
    overrides: Mapping[str, str] = config.FrozenDict()  # keys of the experiment -> values as on a command line

    def __bool__(self) -> bool:
        return bool(self.averaged or self.overrides)

    def __str__(self) -> str:
        """Such as " (average of 20, 40)", to follow a step; empty for checkpoints as they are."""
        return f" (average of {', '.join(map(str, self.averaged))})" if self.averaged else ""

    def fields(self) -> dict[str, Any]:
        """The same for a JSON object: `average` and `set`, where there are."""
        average = {"average": list(self.averaged)} if self.averaged else {}
        return average | ({"set": dict(self.overrides)} if self.overrides else {})

    def folder(self, logdir: Path) -> Path:
        """The folder in which results belong: the logdir, or one of the variant's own below it, which is created.

        What the run has recorded of its checkpoints stays: `--checkpoint best`, for one, goes by it.
        """
        if not self:
            return logdir
        parts = [f"average-{'+'.join(map(str, self.averaged))}"] if self.averaged else []
        parts += [f"{key.removeprefix(_TASK)}={value}" for key, value in sorted(self.overrides.items())]
        name = ",".join(parts)
        readable = re.sub(r"[^\w.,=+-]", "_", name, flags=re.ASCII)[:_LONGEST_NAME]
        if readable != name:
            readable += f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        folder = logdir / "variants" / readable
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "variant.json", json.dumps(self.fields()) + "\n")
        return folder


def settings_of(adopted: Sequence[Adopted]) -> dict[str, Any]:
    """Key of the experiment -> value: what is not as in the experiment in a run that has adopted these."""
    return {key: value for one in adopted for key, value in one["params"].items()}


def task_at(logdir: Path, step: int, experiment: Experiment, overrides: Mapping[str, str]) -> Task:
    """The task that the run in `logdir` trained when it wrote checkpoint `step`, with what `override_task` accepts.

    experiment: that of the run. Raises RequestError if the checkpoint cannot be read.
    """
    settings = settings_of(checkpoints.restore_position(logdir, step).get("adopted", ()))
    return config.override(config.override(experiment, settings), overrides).task


def override_task(experiment: Experiment, overrides: Mapping[str, str]) -> Experiment:
    """The experiment with other settings of its task, under which the variables of the model are the same.

    overrides: key -> value, as `config.override` takes them. Raises RequestError for a key that is not below `task`, a
    key or a value that `config.override` refuses, or if the model's variables would change.
    """
    for key in overrides:
        if not key.startswith(_TASK):
            raise RequestError(f"decode --set changes settings of the task only, keys below {_TASK} (got {key})")
    changed = config.override(experiment, overrides)
    if changed.task != experiment.task:
        before, after = (_variables(each.task) for each in (experiment, changed))
        for path in before | after:
            if before.get(path) != after.get(path):
                given = ", ".join(f"{key}={value}" for key, value in overrides.items())
                raise RequestError(
                    f"--set {given} is of a model with other weights: {path} would be "
                    f"{after.get(path, 'missing')}, in the run it is {before.get(path, 'missing')}"
                )
    return changed


def _variables(task: Task) -> dict[str, str]:
    """Path -> dtype and shape."""
    return {path: f"{x.dtype}{list(x.shape)}" for tree in Model(task).abstract for path, x in names(tree)}
