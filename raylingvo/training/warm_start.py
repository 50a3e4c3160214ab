"""A run that starts with the weights of another one (Lingvo: p.train.init_from_checkpoint_rules)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from raylingvo.errors import RequestError
from raylingvo.parallel.layout import ONE_DEVICE, OneDevice
from raylingvo.training import checkpoints
from raylingvo.training.paths import names, shown, with_values
from raylingvo.training.state import TrainState, Weights

if TYPE_CHECKING:
    from raylingvo.experiment import WarmStart


def resolved(settings: WarmStart) -> WarmStart:
    """The settings with an absolute logdir and the number of a checkpoint: they mean the same everywhere and later.

    Raises RequestError if there is no such checkpoint.
    """
    logdir = Path(settings.logdir).absolute()
    available = checkpoints.steps(logdir)
    if not available:
        raise RequestError(f"train.warm_start.logdir: no checkpoint in {logdir / checkpoints.DIRECTORY}")
    step = available[-1] if settings.checkpoint == "latest" else settings.checkpoint
    if step not in available:
        raise RequestError(
            f"train.warm_start.checkpoint: no checkpoint {step} in {logdir / checkpoints.DIRECTORY}; "
            f"it has {', '.join(map(str, available))}"
        )
    return dataclasses.replace(settings, logdir=str(logdir), checkpoint=step)


def warm_started(state: TrainState, settings: WarmStart, layout: OneDevice = ONE_DEVICE) -> TrainState:
    """The initial state, with the variables that a rule matches taken from a checkpoint; averages begin there too.

    If that run averaged its weights, these are the averages. `settings` are `resolved` ones. Raises RequestError if
    there is no such checkpoint any more, a rule matches no variable, or the checkpoint's variable is missing or of
    another shape.
    """
    if settings.checkpoint == "latest":
        # What is the latest now need not be so later.
        raise ValueError(f"checkpoint must be a step (got {settings.checkpoint!r}): call resolved() first")
    ours = dict([*names(state.weights.params), *names(state.weights.extra)])  # in these trees, a path is unique
    _check_rules(settings.rules, list(ours))
    settings = resolved(settings)
    assert isinstance(settings.checkpoint, int)
    try:
        saved = checkpoints.restore_all_weights(Path(settings.logdir), settings.checkpoint)
    except RequestError as error:
        raise RequestError(f"train.warm_start: {error}") from error
    where = f"train.warm_start.rules: checkpoint {settings.checkpoint} in {settings.logdir}"
    found = dict(names(saved["params"])) | dict(names(saved["extra"]))
    loaded: dict[str, Any] = {}
    for path, x in ours.items():
        source = _source(path, settings.rules)
        if source is None:
            continue
        if source not in found:
            raise RequestError(f"{where} has no variable {source!r} (for {path}); it has {', '.join(sorted(found))}")
        if found[source].shape != x.shape:
            raise RequestError(f"{where}: {source} is of shape {found[source].shape}, {path} of {x.shape}")
        loaded[path] = found[source].astype(x.dtype)

    def with_loaded(weights: Weights) -> Weights:
        there = {path: x for variables in weights for path, x in names(variables) if path in loaded}
        leaves = jax.tree.leaves(loaded)
        values = layout.put_state(lambda i, index: leaves[i][index], there)
        return Weights(*(with_values(variables, values) for variables in weights))

    average = with_loaded(state.average) if isinstance(state.average, Weights) else ()
    return state._replace(weights=with_loaded(state.weights), average=average)


def _check_rules(rules: Sequence[tuple[str, str]], paths: Sequence[str]) -> None:
    for pattern, _ in rules:
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise RequestError(
                f"train.warm_start.rules: {pattern!r} matches no variable as a whole; there are {shown(paths)}"
            )


def _source(path: str, rules: Sequence[tuple[str, str]]) -> str | None:
    """The name in the checkpoint: of the first rule that matches the whole path."""
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, path):
            return match.expand(replacement)
    return None
