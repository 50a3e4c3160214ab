"""The logdir of a run: who may write there, what it says about the run, and whether a run may go on in it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import os
import platform
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

import raylingvo
from raylingvo import config, registry
from raylingvo.actors.git import GIT_SHA, git_sha
from raylingvo.errors import DiskError, RequestError
from raylingvo.experiment import Experiment
from raylingvo.monitor.atomic import naming, write_atomically

# Space that a run holds for its last word: the disk that has made it fail may be full to the last byte.
_SPARE, _SPARE_BYTES = ".spare", 1 << 16
# What a request may leave in a logdir that holds nothing else.
_TRACES = {".lock", "control/driver.log", _SPARE}
_REMEDY = "delete it, and the run goes on from its checkpoints under a new id"
_PACKAGES = ("ray", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class Logdir:
    """A logdir that this process holds alone, until `close` or its death.

    `info` is what run.json says; `update` changes it.
    """

    def __init__(self, path: Path, experiment: Experiment, run: str | None = None):
        """Creates the logdir, or opens one of the very same experiment, on whatever resources; writes only the lock.

        run: the id that the run there has, or, if there is none yet, is to have.
        Raises RequestError if it cannot be written, another process uses it, or it holds something else or something
        damaged.
        """
        self.path = path.absolute()
        self._experiment = experiment
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"--logdir {path}: cannot be created ({error.strerror})") from error
        with contextlib.ExitStack() as held:
            held.enter_context(hold(path))
            self._refuse_another(path)
            self.info = read_info(path) or _new_info(experiment, run)
            if run not in (None, self.info["id"]):
                raise RequestError(f"--logdir {path}: run {self.info['id']} has begun there meanwhile")
            self._held = held.pop_all()

    def experiment_for_roles(self) -> Experiment:
        """The experiment, with the source of its warm start as it was found when the run was first started.

        Raises RequestError if that is now, and there is none.
        """
        warm_start = self._experiment.train.warm_start
        if warm_start is None:
            return self._experiment
        if source := self.info.get("warm_start"):
            found = dataclasses.replace(warm_start, **source)
        else:
            from raylingvo.training.warm_start import resolved  # here: it imports JAX

            found = resolved(warm_start)
        return dataclasses.replace(
            self._experiment, train=dataclasses.replace(self._experiment.train, warm_start=found)
        )

    def begin(self, command: list[str], **fields: Any) -> None:
        """Writes what is known when a run starts, or goes on: a request that proves wrong before leaves no trace."""
        # The config first: by it a logdir is known, even if what follows is cut short.
        write_atomically(self.path / "config.yaml", config.dump(self._experiment))
        with naming(self.path / "control"):
            (self.path / "control").mkdir(exist_ok=True)
        write_atomically(self.path / _SPARE, os.urandom(_SPARE_BYTES))  # no file system can store this in less
        write_atomically(self.path / "control" / "params.txt", config.params_text(self._experiment))
        self.update(
            status="running",
            ended=None,
            stop_reason=None,
            result=None,  # that of an earlier start must not outlive a hard stop of this one
            command=command,
            hosts=[socket.gethostname()],
            process={
                "host": socket.gethostname(),
                "pid": os.getpid(),
                # Process ids are used again. Since the machine was started: clocks are set.
                "created": psutil.Process().create_time() - psutil.boot_time(),
            },
            **_provenance(),
            **fields,
        )

    def update(self, **fields: Any) -> None:
        """Changes fields of run.json. Raises DiskError if the disk takes no more, also in the place of `_SPARE`."""
        self.info.update(fields)
        file, text = self.path / "run.json", json.dumps(self.info, indent=2) + "\n"
        try:
            write_atomically(file, text)
        except DiskError:
            with naming(file):
                (self.path / _SPARE).unlink(missing_ok=True)
            write_atomically(file, text)

    def forget(self) -> None:
        """Takes back what `begin` wrote, if nothing else has come of the run: the next request may be a right one."""
        written = {"run.json", "config.yaml", "control/params.txt"}
        # Of roles that were killed before they could remove the file that says what they crash of.
        written |= {
            str(p.relative_to(self.path)) for p in self.path.glob("control/*_crash.txt") if not p.stat().st_size
        }
        if self._files() <= written | _TRACES:
            for name in written:
                (self.path / name).unlink(missing_ok=True)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of a read-only disk, which has had its error
            (self.path / _SPARE).unlink(missing_ok=True)
        self._held.close()

    def _refuse_another(self, path: Path) -> None:
        if (self.path / "config.yaml").exists():
            # Other resources are no other experiment: a run may go on with more machines, or fewer.
            there = dataclasses.replace(read_experiment(path), resources=self._experiment.resources)
            if differences := config.diff(there, self._experiment):
                raise RequestError(
                    f"--logdir {path} belongs to a run of another experiment; use another logdir, or undo:\n"
                    + "\n".join(f"  {line}" for line in differences)
                )
        elif self._files() - _TRACES:
            raise RequestError(f"--logdir {path} is not empty and has no config.yaml: it is not the logdir of a run")

    def _files(self) -> set[str]:
        return {str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file()}


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Keeps every other process out of a logdir; also ends with this process, however it dies.

    Raises RequestError if another holds it, or it cannot be written.
    """
    try:
        lock = (path / ".lock").open("a")
    except OSError as error:
        raise RequestError(f"--logdir {path}: cannot be written ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RequestError(f"--logdir {path}: another raylingvo process is running in it") from error
        yield


def read_experiment(path: Path) -> Experiment:
    """The experiment of a logdir, whose code may be in the current directory. Raises RequestError if it is not one."""
    file = path / "config.yaml"
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"--logdir {path}: no run here ({file} cannot be read: {error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{file} is damaged: it is not UTF-8 ({error})") from error
    if not text.strip("\0\n"):
        raise RequestError(
            f"{file} is damaged: it is empty; put a copy back (`raylingvo inspect config` prints one), or use another "
            "--logdir"
        )
    registry.import_current_directory()
    try:
        return config.load(text, Experiment)
    except RequestError as error:
        raise RequestError(f"{file}: {error}") from error


def read_info(path: Path) -> dict[str, Any] | None:
    """What run.json in a logdir says; None if there is none. Raises RequestError if it cannot be read."""
    file = path / "run.json"
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RequestError(f"{file} is damaged: it is not JSON ({error}); {_REMEDY}") from error
    if not (isinstance(info, dict) and info.keys() >= {"id", "status"}):
        raise RequestError(f"{file} is damaged: it is not an object with id and status; {_REMEDY}")
    return info


def _new_info(experiment: Experiment, run: str | None) -> dict[str, Any]:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return {
        "id": run or f"{experiment.name.rpartition('.')[2]}-{stamp}-{uuid.uuid4().hex[:4]}",
        "experiment": experiment.name,
        "seed": experiment.train.seed,
        "started": time.time(),
        "ended": None,
        "status": "running",
        "stop_reason": None,
        "warm_start": None,
        "step": 0,
        "result": None,
    }


def _provenance() -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "git_sha": git_sha(Path()) or os.environ.get(GIT_SHA),
        "versions": {"raylingvo": raylingvo.__version__, "python": platform.python_version(), **versions},
        "executable": sys.executable,
        "working_directory": os.getcwd(),  # noqa: PTH109 - a string for JSON
    }
