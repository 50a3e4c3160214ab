"""The mean of the weights of several checkpoints of a run, which often scores better than any of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from raylingvo.errors import RequestError
from raylingvo.training import checkpoints
from raylingvo.training.host_copy import decode, encode

if TYPE_CHECKING:
    from raylingvo.experiment import Best


def resolve(logdir: Path, which: str, number: int, best: Best | None) -> list[int]:
    """The steps of the `number` checkpoints to average.

    which: `latest` or a step for the newest up to it, newest first; `best` for the best ones, best first. best: the
    experiment's `train.checkpoints.best`. Raises RequestError if there are not so many.
    """
    if number < 1:
        raise RequestError(f"--average must be >= 1 (got {number})")
    if which == "all":
        raise RequestError("--average goes with one checkpoint, latest, best or a step, not with --checkpoint all")
    (first,) = checkpoints.resolve(logdir, which, best)
    if which == "best":
        found, kind, more = checkpoints.best_first(logdir, best), "with a score", "best.keep"
    else:
        found = [step for step in reversed(checkpoints.steps(logdir)) if step <= first]
        kind, more = f"up to step {first}", "keep_last"
    if len(found) < number:
        raise RequestError(
            f"--average {number}: the checkpoints {kind} are {', '.join(map(str, sorted(found)))}; "
            f"train.checkpoints.{more} says how many a run keeps"
        )
    return found[:number]


def restore_mean(logdir: Path, steps: Sequence[int], abstract_weights: Any) -> list[np.ndarray]:
    """The mean of the weights of checkpoints, as `checkpoints.restore_weights` gives those of one.

    Variables that are not floats are those of `steps[0]`. Sums are float64, from the first step to the last: the order
    of `steps` does not matter to them. Besides the sums, one checkpoint at a time is in memory. A mean of one is that
    checkpoint, bit for bit. Raises RequestError as `restore_weights` does.
    """
    if len(steps) == 1:
        return checkpoints.restore_weights(logdir, steps[0], abstract_weights)
    wanted = jax.tree.leaves(abstract_weights)
    means: list[np.ndarray] = [np.zeros(want.shape, np.float64) for want in wanted]  # sums, until the end
    for step in sorted(steps):
        for i, x in enumerate(_leaves(logdir, step, abstract_weights)):
            if _is_float(x):
                means[i] += x.astype(np.float64)
            elif step == steps[0]:
                means[i] = x
    for i, want in enumerate(wanted):
        if _is_float(want):
            means[i] = (means[i] / len(steps)).astype(want.dtype)
    return encode(means)


def _leaves(logdir: Path, step: int, abstract_weights: Any) -> list[np.ndarray]:
    return jax.tree.leaves(decode(checkpoints.restore_weights(logdir, step, abstract_weights), abstract_weights))


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)
