"""A run that starts with the weights of another one (Lingvo: p.train.init_from_checkpoint_rules)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from raylingvo.errors import RequestError
from raylingvo.training import checkpoints
from raylingvo.training.paths import names
from raylingvo.training.state import TrainState, Weights

if TYPE_CHECKING:
    from raylingvo.experiment import WarmStart


def warm_started(state: TrainState, settings: WarmStart) -> TrainState:
    """The initial state, with the variables that a rule matches taken from a checkpoint; averages begin there too.

    If that run averaged its weights, these are the averages. Raises RequestError if there is no such checkpoint, no
    rule matches a variable, or the checkpoint's variable is missing or of another shape.
    """
    logdir = Path(settings.logdir)
    try:
        step = checkpoints.resolve(logdir, str(settings.checkpoint), None)[-1]
        saved = checkpoints.restore_all_weights(logdir, step)
    except RequestError as error:
        raise RequestError(f"train.warm_start: {error}") from error
    where = f"train.warm_start: checkpoint {step} in {settings.logdir}"
    # In a tree of weights, trained or not, a path is unique.
    found = dict(names(saved["params"])) | dict(names(saved["extra"]))
    loaded: dict[str, Any] = {}
    for path, x in [*names(state.weights.params), *names(state.weights.extra)]:
        source = _source(path, settings.rules)
        if source is None:
            continue
        if source not in found:
            raise RequestError(f"{where} has no variable {source!r} (for {path}); it has {', '.join(sorted(found))}")
        if found[source].shape != x.shape:
            raise RequestError(f"{where}: {source} is of shape {found[source].shape}, {path} of {x.shape}")
        loaded[path] = found[source]
    if not loaded:
        raise RequestError(f"train.warm_start: no rule matches a variable (got {list(map(list, settings.rules))})")
    weights = Weights(*(_with(variables, loaded) for variables in state.weights))
    average = Weights(*(_with(variables, loaded) for variables in state.average)) if state.average else ()
    return state._replace(weights=weights, average=average)


def _source(path: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    """The name in the checkpoint: of the first rule that matches the whole path."""
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, path):
            return match.expand(replacement)
    return None


def _with(variables: Any, loaded: dict[str, Any], prefix: str = "") -> Any:
    """The tree with the loaded variables in it, as arrays of its own: the state is donated to the first step."""
    return {
        name: _with(value, loaded, f"{prefix}{name}/")
        if isinstance(value, Mapping)
        else jnp.array(loaded.get(f"{prefix}{name}", value), value.dtype)
        for name, value in variables.items()
    }
