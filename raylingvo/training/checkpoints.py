"""Durable checkpoints: written by Orbax in the background, atomic, retained by age and by score."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from raylingvo.errors import DiskError, RequestError
from raylingvo.monitor.atomic import REFUSALS, naming
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.parallel.hosts import ALONE, WORK_SECONDS, Host
from raylingvo.parallel.layout import OneDevice
from raylingvo.training import checksums
from raylingvo.training.host_copy import encode

if TYPE_CHECKING:
    from raylingvo.experiment import Best
    from raylingvo.experiment import Checkpoints as CheckpointPolicy

DIRECTORY = Path("train") / "checkpoints"
# Behind the step, in the names of folders that are no checkpoints: being written, being deleted, giving way to a newer
# one of the same step, found damaged.
_UNFINISHED, _DELETING, _REPLACED, _DAMAGED = ".unfinished", ".deleting", ".replaced", ".damaged"


class DamagedCheckpoint(RequestError):
    """The files of a checkpoint are not what was written. `reason` says of which file."""

    def __init__(self, message: str, reason: str):
        super().__init__(message, reason)  # both, for pickle
        self.reason = reason

    def __str__(self) -> str:
        return self.args[0]


@dataclasses.dataclass(frozen=True)
class Saved:
    """What retention needs to know of a finished checkpoint."""

    step: int
    time: float  # seconds since the epoch


def steps(logdir: Path) -> list[int]:
    """The steps of the finished checkpoints of a run, ascending."""
    return [saved.step for saved in _finished(logdir / DIRECTORY)]


def resolve(logdir: Path, which: str, best: Best | None) -> list[int]:
    """`latest`, `best`, `all` or a step -> the steps of checkpoints that exist. Raises RequestError if there are none.

    best: the metric that `best` goes by; the experiment's `train.checkpoints.best`.
    """
    available = steps(logdir)
    if not available:
        raise RequestError(f"no checkpoint in {logdir / DIRECTORY}; the run has not reached its first one")
    if which == "all":
        return available
    if which == "latest":
        return available[-1:]
    if which == "best":
        return best_first(logdir, best)[:1]
    if not which.isdecimal() or int(which) not in available:
        raise RequestError(
            f"no checkpoint {which!r} in {logdir / DIRECTORY}; "
            f"it has {', '.join(map(str, available))}, latest, best, all"
        )
    return [int(which)]


def best_first(logdir: Path, best: Best | None) -> list[int]:
    """The steps of the checkpoints that have a score, the best first. Raises RequestError if there are none."""
    if best is None:
        raise RequestError("--checkpoint best: this experiment sets no train.checkpoints.best")
    scores = {step: score for step, score in read_scores(logdir, best.metric).items() if not math.isnan(score)}
    available = steps(logdir)
    kept = [step for step in rank(scores, best.mode) if step in available]
    if not kept:
        raise RequestError(f"--checkpoint best: no checkpoint has a finite {best.metric} yet; evaluate or decode one")
    return kept


def read_scores(logdir: Path, metric: str) -> dict[int, float]:
    """step -> value of the metric DATASET/NAME, for each step that has been evaluated, or decoded, on the dataset.

    It is the Evaler's metric if that has ever reported one of the name, else the Decoder's; empty if neither has. The
    value is NaN if it was not finite, or if the metric had no value at this step: worse than any number.
    """
    dataset, _, name = metric.partition("/")
    for role in ("eval", "decode"):
        records = read_metrics(logdir / f"{role}_{dataset}")
        if any(name in record for record in records):
            values = {record["step"]: record.get(name) for record in records}
            return {step: math.nan if value is None else value for step, value in values.items()}
    return {}


def rank(scores: Mapping[int, float], mode: str) -> list[int]:
    """Steps from best to worst, NaN last; the earlier of two equal ones first."""
    sign = -1 if mode == "max" else 1

    def order(step: int) -> tuple[bool, float, int]:
        score = scores[step]
        return math.isnan(score), 0.0 if math.isnan(score) else sign * score, step

    return sorted(scores, key=order)


def retained(saved: Sequence[Saved], policy: CheckpointPolicy, scores: Mapping[int, float]) -> set[int]:
    """The steps to keep: the last N, one per period, the best k by score, and those whose score may still come.

    A score may still come for a step that is newer than every evaluated one, but only the newest N + k are waited for:
    an Evaler that has failed, or works on the last snapshot only, must not fill the disk.
    saved: ascending by step. scores: of any steps, evaluated checkpoints or not, as from `read_scores`. Pure: time
    enters through `saved`.
    """
    kept = {s.step for s in saved[-policy.keep_last :]}
    if policy.keep_every_seconds is not None:
        last_kept = None
        for s in saved:
            if last_kept is None or s.time - last_kept >= policy.keep_every_seconds:
                kept.add(s.step)
                last_kept = s.time
    if policy.best is not None:
        here = {s.step: scores[s.step] for s in saved if s.step in scores}
        kept.update(rank(here, policy.best.mode)[: policy.best.keep])
        last_evaluated = max(scores, default=-1)
        newest = saved[-(policy.keep_last + policy.best.keep) :]
        kept.update(s.step for s in newest if s.step > last_evaluated)
    return kept


class CheckpointWriter:
    """Writes checkpoints in a background thread and deletes those that the policy lets go.

    An error of a save is raised by the next call, at the latest by `close`: a run must not go on believing that it
    is safe. It is a DiskError if the disk takes no more. What a save that failed had written is removed again, and no
    other checkpoint is deleted. There is at most one save under way; a further one waits for it.
    Of several hosts each writes what it holds, at the same time; host 0 does what is to be done once.
    """

    def __init__(self, logdir: Path, policy: CheckpointPolicy, tell: Callable[[str], None], host: Host = ALONE):
        """`tell` is called with a line for each checkpoint written."""
        self._host = host
        self._logdir = logdir
        self._policy = policy
        self._tell = tell
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, step: int, state: Any, position: dict[str, Any], *, on_saved: Callable[[], None]) -> None:
        """Starts writing checkpoint `step`: `position`, and `state`, host arrays that stay until `on_saved()`."""
        self.wait()
        self._pending = self._executor.submit(self._write, step, state, position, on_saved)

    def busy(self) -> bool:
        """Whether a save is under way. Raises its error if it failed."""
        if self._pending is not None and self._pending.done():
            self.wait()
        return self._pending is not None

    def wait(self) -> None:
        """Waits for the save under way, if any; raises its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits and ends the thread; raises the error of the last save."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()

    def _write(self, step: int, state: Any, position: dict[str, Any], on_saved: Callable[[], None]) -> None:
        import orbax.checkpoint as ocp  # here: 0.4 to 1.4 s, which the first step need not wait for

        root = self._logdir / DIRECTORY
        path, unfinished = root / str(step), root / f"{step}{_UNFINISHED}"
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position))
        try:
            with _naming(path):
                # Orbax's own AsyncCheckpointer reports a directory it cannot create only after minutes of waiting for
                # it (0.12.8), and copies what is a host copy already: its synchronous one in our thread raises at once.
                with _checkpointer(self._host) as checkpointer:
                    checkpointer.save(unfinished.absolute(), args=arguments, force=True)
                if self._host.leads:
                    checksums.seal(unfinished)
                    _move_into_place(unfinished, path)
        except Exception:
            # A full disk needs the space, the run.json that is to say so first of all.
            for half in root.glob(f"{step}{_UNFINISHED}*") if self._host.leads else ():
                # A thread of TensorStore may still write there; then `clean` removes it.
                shutil.rmtree(half, ignore_errors=True)
            raise
        on_saved()
        if self._host.leads:
            self._tell(f"checkpoint {step} written")
            self._delete_others()

    def _delete_others(self) -> None:
        root = self._logdir / DIRECTORY
        saved = _finished(root)
        best = self._policy.best
        kept = retained(saved, self._policy, read_scores(self._logdir, best.metric) if best else {})
        for s in saved:
            if s.step not in kept:
                with naming(root / str(s.step)):
                    _delete(root / str(s.step))


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """As `naming`, also for the errors of TensorStore: ValueErrors with the words of the disk somewhere in the text."""
    try:
        with naming(path):
            yield
    except OSError:
        raise
    except Exception as error:
        for number in REFUSALS:
            if os.strerror(number) in str(error):
                raise DiskError(number, os.strerror(number), str(path)) from error
        raise


def _move_into_place(unfinished: Path, path: Path) -> None:
    """Gives a whole checkpoint its name, for good: also if the power fails. One that has the name goes, but not before.

    Of the two one is there at any time: see `clean`.
    """
    replaced = path.with_name(path.name + _REPLACED)
    if path.exists():
        path.rename(replaced)
    unfinished.rename(path)
    checksums.sync_folder(path.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def _delete(path: Path) -> None:
    # Renamed first: a deletion that is cut short must not leave half a checkpoint under its name.
    shutil.rmtree(path.rename(path.with_name(path.name + _DELETING)))


def damage(logdir: Path, step: int) -> str | None:
    """What is wrong with the files of checkpoint `step`, if it is not what was written.

    Raises RequestError if they cannot be read.
    """
    path = (logdir / DIRECTORY / str(step)).absolute()
    try:
        return checksums.damage(path)
    except OSError as error:
        raise RequestError(f"checkpoint {path} cannot be read: {error.strerror} ({error.filename})") from error


def restore_on(layout: OneDevice, host: Host, logdir: Path, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
    """As `restore`, of a checkpoint without `damage`; the state lies on the devices as the layout says.

    Each of several hosts reads what its devices hold; all must call.
    """
    if host.count == 1:
        restored = _read(logdir, step, _whole(abstract), host)
        leaves = jax.tree.leaves(restored.state)
        _check_shapes(logdir, step, abstract, leaves)
        return layout.put_state(lambda i, index: leaves[i][index], abstract), restored.position
    targets = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        abstract,
        layout.shardings(abstract),
    )
    restored = _read(logdir, step, targets, host)
    _check_shapes(logdir, step, abstract, jax.tree.leaves(restored.state))
    return restored.state, restored.position


def restore(logdir: Path, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
    """Checkpoint `step` -> (state with the structure, shapes and dtypes of `abstract_state`, position).

    Raises DamagedCheckpoint if its files are not what was written, RequestError if it cannot be read or has other
    variables or shapes.
    """
    _refuse_damaged(logdir, step)
    restored = _read(logdir, step, _whole(abstract_state), ALONE)
    _check_shapes(logdir, step, abstract_state, jax.tree.leaves(restored.state))
    return restored.state, restored.position


def restore_weights(logdir: Path, step: int, abstract_weights: Any) -> list[np.ndarray]:
    """The weights of checkpoint `step`, as `host_copy.encode`d leaves in the order of `abstract_weights`.

    Raises as `restore` does.
    """
    restored = _restore_whatever(logdir, step)["weights"]
    paths = jax.tree_util.tree_leaves_with_path(abstract_weights)
    try:
        found = [np.asarray(_at(restored, path)) for path, _ in paths]
    except (KeyError, TypeError) as error:
        raise RequestError(f"checkpoint {step} in {logdir} has no variable {error}: it is of another model") from error
    _check_shapes(logdir, step, abstract_weights, found)
    return encode(found)


def restore_position(logdir: Path, step: int) -> dict[str, Any]:
    """What checkpoint `step` has besides the state. Raises RequestError if it cannot be read."""
    import orbax.checkpoint as ocp

    path = (logdir / DIRECTORY / str(step)).absolute()
    with _reading(path):
        position = ocp.JsonCheckpointHandler().restore(path / "position")  # pyright: ignore[reportArgumentType]
    return dict(position)


def restore_all_weights(logdir: Path, step: int) -> dict[str, Any]:
    """The weights of checkpoint `step` of whatever model: {"params": nested dicts of arrays, "extra": ..}.

    All keys are strings, those of lists too. Raises DamagedCheckpoint, or RequestError if it cannot be read.
    """
    weights = _restore_whatever(logdir, step)["weights"]
    return {kind: weights.get(kind) or {} for kind in ("params", "extra")}


def _check_shapes(logdir: Path, step: int, abstract: Any, found: Iterable[Any]) -> None:
    """Orbax compares the names only, and gives what is on disk."""
    for (path, want), leaf in zip(jax.tree_util.tree_leaves_with_path(abstract), found, strict=True):
        if leaf.shape != want.shape or leaf.dtype != want.dtype:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise RequestError(
                f"checkpoint {step} in {logdir} cannot be read: {name} is {leaf.dtype}{leaf.shape}, "
                f"expected {want.dtype}{want.shape}"
            )


def _at(tree: Any, path: Any) -> Any:
    # Orbax gives named tuples and lists back as dicts, keyed by name.
    for key in path:
        tree = tree[str(getattr(key, "name", getattr(key, "key", None)))]
    return tree


def _refuse_damaged(logdir: Path, step: int) -> None:
    """Raises DamagedCheckpoint for what Orbax overlooks, or has its threads write tracebacks about for each array."""
    if (logdir / DIRECTORY / str(step)).exists() and (reason := damage(logdir, step)) is not None:
        others = [str(other) for other in steps(logdir) if other != step]
        advice = f"choose another: {', '.join(others)}" if others else "there is no other"
        path = (logdir / DIRECTORY / str(step)).absolute()
        raise DamagedCheckpoint(f"checkpoint {path} is damaged: {reason}; {advice}", reason)


def _read(logdir: Path, step: int, targets: Any, host: Host) -> Any:
    """What of `targets` is a NumPy array becomes one, whole; what is a shape with a sharding an array that lies so."""
    import orbax.checkpoint as ocp

    path = (logdir / DIRECTORY / str(step)).absolute()
    arguments = ocp.args.Composite(state=ocp.args.StandardRestore(targets), position=ocp.args.JsonRestore())
    with _reading(path), _checkpointer(host) as checkpointer:
        return checkpointer.restore(path, args=arguments)


def _whole(abstract: Any) -> Any:
    """NumPy arrays of these shapes, without memory."""
    return jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), abstract)


def _restore_whatever(logdir: Path, step: int) -> Any:
    """The state of a checkpoint of whatever model as nested dicts of NumPy arrays; read by this process alone."""
    import orbax.checkpoint as ocp

    _refuse_damaged(logdir, step)
    path = (logdir / DIRECTORY / str(step)).absolute()
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with _reading(path), ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        # Otherwise Orbax wants the devices back that wrote it.
        tree = handler.metadata(path / "state").tree  # pyright: ignore[reportArgumentType]
        arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(path / "state", args=ocp.args.PyTreeRestore(item=None, restore_args=arrays))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, OSError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise RequestError(f"checkpoint {path} cannot be read: {first_line}") from error


def set_aside(logdir: Path, step: int) -> Path:
    """Renames a damaged checkpoint, which is none any more; returns its new path. Its files are left to people."""
    path = logdir / DIRECTORY / str(step)
    aside, number = path.with_name(f"{step}{_DAMAGED}"), 1
    while aside.exists():  # the same step, saved again, has been damaged again
        number += 1
        aside = path.with_name(f"{step}{_DAMAGED}-{number}")
    with naming(path):
        return path.rename(aside)


def refuse_damaged(logdir: Path, damaged: Mapping[int, str]) -> None:
    """Raises RequestError if there are damaged checkpoints, and none besides: a run must not begin anew by itself.

    damaged: step -> what is wrong, of those not set aside.
    """
    root = logdir / DIRECTORY
    found = [f"{step}: {reason}" for step, reason in damaged.items()]
    found += sorted(path.name for path in root.glob(f"*{_DAMAGED}*"))
    if found:
        raise RequestError(
            f"no checkpoint in {root} can be read ({'; '.join(found)}); put back a copy of one, use another --logdir, "
            "or delete that folder to begin anew"
        )


def clean(logdir: Path) -> None:
    """Removes what a killed process left half-written, half-deleted or half-replaced."""
    for replaced in (logdir / DIRECTORY).glob(f"*{_REPLACED}"):
        if not (path := replaced.with_name(replaced.name.removesuffix(_REPLACED))).exists():
            with naming(path):
                replaced.rename(path)
    for pattern in (f"*{_UNFINISHED}*", f"*{_DELETING}", f"*{_REPLACED}"):
        for path in (logdir / DIRECTORY).glob(pattern):
            logging.getLogger(__name__).info("removing unfinished %s", path)
            with naming(path):
                shutil.rmtree(path)


def _checkpointer(host: Host) -> Any:
    """For all hosts together. They wait for each other without their devices, which may be training meanwhile."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint._src.multihost import multihost

    if host.count > 1:
        # Orbax (0.12.8) gives up after 5 minutes; host 0 may write for longer what is whole on all.
        multihost._DEFAULT_BARRIER_TIMEOUT = WORK_SECONDS
    hosts = set(range(host.count)) if host.count > 1 else None
    options = ocp.options.MultiprocessingOptions(primary_host=0, active_processes=hosts)
    handler = ocp.CompositeCheckpointHandler(
        state=ocp.StandardCheckpointHandler(multiprocessing_options=options),
        position=ocp.JsonCheckpointHandler(multiprocessing_options=options),
        composite_options=ocp.CompositeOptions(multiprocessing_options=options),
    )
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _finished(root: Path) -> list[Saved]:
    # They are written under another name and renamed: a directory named by a step alone was whole then.
    found = root.iterdir() if root.is_dir() else ()
    saved = [Saved(int(path.name), path.stat().st_mtime) for path in found if path.name.isdecimal()]
    return sorted(saved, key=lambda s: s.step)
