"""Reads logdirs, of finished runs and of running ones, into plain data. Layout: interfaces.md; tables: runs_view.py."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from raylingvo.errors import RequestError
from raylingvo.monitor.metrics_log import METRICS_FILE, read_metrics

Record = dict[str, Any]  # {"step", "time", metric: value or None, ...}

# By whole words of a metric's name: which way is better. Anything else (learning_rate, num_preds) has no best.
_LOWER = {"loss", "log", "pplx", "perplexity", "error", "error5", "wer", "cer", "ter", "xent", "nll", "mse", "mae"}
_HIGHER = {"accuracy", "acc", "acc5", "correct", "top1", "top5", "bleu", "chrf", "ap", "map", "auc", "f1", "mcc"}
_HIGHER |= {"precision", "recall", "sacrebleu"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One logdir, as it was when read; metrics are read when first asked for."""

    logdir: Path
    info: Mapping[str, Any]  # run.json, but status "died" if its process is gone; started, ended are Unix seconds
    config_text: str  # config.yaml, "" if the run ended before it was written
    source: os.stat_result | None = None  # of the very file from which `info` was read

    @property
    def id(self) -> str:
        return str(self.info["id"])

    @functools.cached_property
    def config(self) -> Any:
        """config.yaml as nested mappings and lists; needs no import of the experiment."""
        try:
            return yaml.safe_load(self.config_text) or {}
        except yaml.YAMLError as error:
            raise RequestError(f"{self.logdir / 'config.yaml'} is not YAML: {_one_line(error)}") from error

    @functools.cached_property
    def series(self) -> dict[str, list[Record]]:
        """Records by step, of each folder with metrics: train, eval_<dataset>, decode_<dataset>, in this order."""
        folders = [self.logdir / "train", *sorted(self.logdir.glob("eval_*")), *sorted(self.logdir.glob("decode_*"))]
        found = {f.name: _read_metrics(f) for f in folders if (f / METRICS_FILE).is_file()}
        return {name: records for name, records in found.items() if records}


def load_run(path: str | os.PathLike[str]) -> Run:
    """Reads one logdir. Raises RequestError if `path` is none, or its files are damaged."""
    logdir = Path(path)
    config = logdir / "config.yaml"
    try:
        info, source = _read_json(logdir / "run.json")
        text = config.read_text(encoding="utf-8") if config.exists() else ""
        match info:
            case {"id": str(), "status": str(status)}:
                pass
            case _:
                raise ValueError("run.json is damaged: it is not an object with an id and a status, both text")
        if status == "running" and _has_died(info):
            info["status"] = "died"
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RequestError(f"LOGDIR {logdir} is not a logdir: it has no run.json") from error
    except (OSError, ValueError) as error:
        raise RequestError(f"LOGDIR {logdir} cannot be read: {_one_line(error)}") from error
    return Run(logdir=logdir, info=info, config_text=text, source=source)


def _read_json(file: Path) -> tuple[Any, os.stat_result]:
    try:
        with file.open(encoding="utf-8") as opened:
            return json.load(opened), os.fstat(opened.fileno())
    except ValueError as error:
        raise ValueError(f"{file.name} is damaged: it is not JSON ({error})") from error


def _has_died(info: Mapping[str, Any]) -> bool:
    """Whether the process that said it was running is gone without a word: after kill -9, or a power cut.

    Raises ValueError if what it said is damaged.
    """
    process = info.get("process")
    if process is None:
        return False
    match process:
        case {"host": str(host), "pid": int(pid), "created": int() | float() as created} if pid > 0:
            pass
        case _:
            raise ValueError(f"run.json is damaged: process is to have a host, a pid and created (got {process!r})")
    if host != socket.gethostname():
        return False  # what runs on another machine cannot be seen from here
    try:
        return abs(psutil.Process(pid).create_time() - psutil.boot_time() - created) > 1.0
    except psutil.NoSuchProcess:
        return True


def find_runs(paths: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """Reads the logdirs that are, or lie anywhere below, `paths`; each once, in the order given, then by name.

    Raises RequestError for a path without any.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise RequestError(f"LOGDIR {path} {'is not a directory' if path.exists() else 'does not exist'}")
        logdirs = _logdirs_below(path)
        if not logdirs:
            raise RequestError(f"LOGDIR {path} is not a logdir and holds none: there is no run.json")
        for logdir in logdirs:
            found.setdefault(logdir.resolve(), logdir)
    return [load_run(logdir) for logdir in found.values()]


def list_rows(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """One JSON-able row a run: what, how far, when, and the newest metrics.

    `{"run", "experiment", "status", "step", "started", "seconds", "train": {metric: value},
    "eval": {dataset: {"step", metric: value}}, "decode": {...}, "logdir"}`; what is not known is None. `seconds` is
    from the start to the end, or to the newest report of a run that has not ended.
    """
    return [_row(run) for run in runs]


def show(run: Run) -> dict[str, Any]:
    """Everything about a run but its curves, JSON-able: run.json's fields, `logdir`, and

    `"metrics": {folder: {metric: {"last", "step", "best", "best_step"}}}`, where best is None for a metric of which
    neither more nor less is better.
    """
    metrics = {place: _extremes(records) for place, records in run.series.items()}
    return {**run.info, "logdir": str(run.logdir), "metrics": metrics}


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """What differs between runs, side by side and JSON-able; runs go by their `labels`.

    `{"runs": {label: row of list_rows}, "config": {dotted key: {label: value}}, "metrics": {"folder/metric": {label:
    as in show}}}`. `config` has the keys whose values differ; a run without the key is left out there.
    Raises RequestError for fewer than two runs.
    """
    if len(runs) < 2:
        raise RequestError(f"LOGDIR: compare needs at least two runs (got {len(runs)})")
    names = labels(runs)
    configs = {name: flatten(run.config) for name, run in zip(names, runs, strict=True)}
    metrics: dict[str, dict[str, Any]] = {}
    for name, run in zip(names, runs, strict=True):
        for place, records in run.series.items():
            for metric, value in _extremes(records).items():
                metrics.setdefault(f"{place}/{metric}", {})[name] = value
    return {
        "runs": dict(zip(names, list_rows(runs), strict=True)),
        "config": differences(configs),
        "metrics": metrics,
    }


def labels(runs: Sequence[Run]) -> list[str]:
    """A short name for each run: the end of its logdir's path, as much of it as tells all of them apart."""
    return short_names([run.logdir for run in runs])


def short_names(paths: Sequence[Path]) -> list[str]:
    """The end of each path, as much of it as tells all of them apart."""
    parts = [path.resolve().parts for path in paths]
    depth = 1
    while len({p[-depth:] for p in parts}) < len(set(parts)):
        depth += 1
    return [str(Path(*p[-depth:])) for p in parts]


def better(metric: str) -> Callable[..., Any] | None:
    """`min` or `max`, whichever picks the better of two values of a metric, judged by its name; None if neither."""
    words = set(re.split(r"[^a-z0-9]+", metric.lower()))
    if words & _HIGHER:
        return max
    return min if words & _LOWER else None


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> leaf of nested mappings; lists and empty mappings are leaves."""
    if not (isinstance(tree, Mapping) and tree):
        return {prefix: tree} if prefix else {}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def metrics_of(record: Record) -> dict[str, float | None]:
    """A record without its step and time."""
    return {name: value for name, value in record.items() if name not in ("step", "time")}


def _logdirs_below(path: Path) -> list[Path]:
    found = []
    for folder, subfolders, files in os.walk(path, onerror=_raise):
        subfolders.sort()
        if "run.json" in files:
            found.append(Path(folder))
            subfolders.clear()  # what is inside a logdir is its own
    return found


def _raise(error: OSError) -> None:
    raise RequestError(f"LOGDIR {error.filename} cannot be read: {error.strerror}") from error


def _read_metrics(folder: Path) -> list[Record]:
    try:
        return read_metrics(folder)
    except (OSError, ValueError) as error:  # both name the file
        raise RequestError(_one_line(error)) from error


def _row(run: Run) -> dict[str, Any]:
    last = {place: records[-1] for place, records in run.series.items()}
    by_role: dict[str, dict[str, Record]] = {"eval": {}, "decode": {}}
    for place, record in last.items():
        role, _, dataset = place.partition("_")
        if dataset:
            by_role[role][dataset] = {"step": record["step"], **metrics_of(record)}
    steps = [step for step in (run.info.get("step"), last.get("train", {}).get("step")) if step is not None]
    started = run.info.get("started")
    ended = run.info.get("ended") or max((record["time"] for record in last.values()), default=None)
    return {
        "run": run.id,
        "experiment": run.info.get("experiment"),
        "status": run.info["status"],
        "step": max(steps, default=None),
        "started": started,
        "seconds": None if started is None or ended is None else ended - started,
        "train": metrics_of(last.get("train", {})),
        **by_role,
        "logdir": str(run.logdir),
    }


def _extremes(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Metric -> its last value, its best, and their steps; null (a value that was not finite) is never the best."""
    result: dict[str, dict[str, Any]] = {}
    for metric in dict.fromkeys(name for record in records for name in metrics_of(record)):
        seen = [(record[metric], record["step"]) for record in records if metric in record]
        pick = better(metric)
        finite = [pair for pair in seen if pair[0] is not None]
        best, best_step = pick(finite, key=lambda pair: pair[0]) if pick and finite else (None, None)
        last, step = seen[-1]
        result[metric] = {"last": last, "step": step, "best": best, "best_step": best_step}
    return result


def differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Key -> name of a config -> value, where configs differ; one without the key is left out there."""
    found: dict[str, dict[str, Any]] = {}
    for key in dict.fromkeys(key for config in configs.values() for key in config):
        values = {name: config[key] for name, config in configs.items() if key in config}
        if len(values) < len(configs) or any(value != next(iter(values.values())) for value in values.values()):
            found[key] = values
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
