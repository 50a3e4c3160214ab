"""What a run exports to Prometheus: one table, and how each role's values come from what it knows. No Ray."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

PREFIX = "raylingvo_"
# Every metric has these. Their values are few: no tag has a step, a host or a process.
TAGS = ("run", "role", "dataset")
ROLES = ("driver", "trainer", "evaler", "decoder", "store")

Cause = Literal["died", "error", "crash", "lost hosts", "preempted"]
CAUSES: dict[Cause, str] = {
    "died": "its process or its machine was killed",
    "error": "it raised an error",
    "crash": "native code ended its process",
    "lost hosts": "a host of the Trainer has lost the others",
    "preempted": "its machine was taken away, and it has saved its state before",
}


class Exported(NamedTuple):
    """A metric. Ray puts `ray_` before its name, and `_total` behind that of a counter."""

    name: str  # without PREFIX
    kind: Literal["gauge", "counter"]
    unit: str
    roles: tuple[str, ...]  # values of the tag `role`
    help: str
    tags: tuple[str, ...] = TAGS

    @property
    def full_name(self) -> str:
        """As it is declared to Ray."""
        return PREFIX + self.name

    @property
    def prometheus_name(self) -> str:
        """As queries have it."""
        return f"ray_{self.full_name}{'_total' if self.kind == 'counter' else ''}"


_READERS = ("evaler", "decoder")
EXPORTED = (
    Exported("elapsed_seconds", "gauge", "s", ("driver",), "since the run was started, the last time"),
    Exported("step", "gauge", "steps", ("trainer", *_READERS), "taken; of a reader: the last that it is done with"),
    Exported("max_steps", "gauge", "steps", ("trainer",), "at which training ends"),
    Exported("step_age_seconds", "gauge", "s", ("trainer",), "since the step was last seen to change, while it should"),
    Exported("steps_per_second", "gauge", "1/s", ("trainer",), "of the last report"),
    Exported("examples_per_second", "gauge", "1/s", ("trainer", *_READERS), "of the last report or result"),
    Exported("tokens_per_second", "gauge", "1/s", ("trainer",), "predicted ones, of the last report; if there are any"),
    Exported("loss", "gauge", "", ("trainer", *_READERS), "of the last report or result; absent if it is not finite"),
    Exported("learning_rate", "gauge", "", ("trainer",), "of the last report; of several learners: the largest"),
    Exported("grad_norm", "gauge", "", ("trainer",), "L2, of all gradients; of several learners: the largest"),
    Exported("input_wait_fraction", "gauge", "0-1", ("trainer",), "of the time, spent waiting for data"),
    Exported("flops_per_second", "gauge", "1/s", ("trainer",), "of matrix products and convolutions; if all are known"),
    Exported("mfu", "gauge", "0-1", ("trainer",), "flops_per_second / the peak of all devices; if that is known"),
    Exported("skipped_updates", "gauge", "updates", ("trainer",), "that were not finite, since the run began"),
    Exported("rollbacks", "gauge", "", ("trainer",), "to earlier weights, after such updates"),
    Exported("bad_records", "gauge", "records", ("trainer",), "damaged ones that were left out"),
    Exported("checkpoint_age_seconds", "gauge", "s", ("trainer",), "of the newest, or since the run was started"),
    Exported("snapshot_age_seconds", "gauge", "s", ("store",), "since the end of the step of the newest snapshot"),
    Exported("store_snapshots", "gauge", "snapshots", ("store",), "in memory"),
    Exported("store_bytes", "gauge", "bytes", ("store",), "of snapshots in memory"),
    Exported("store_snapshots_on_disk", "gauge", "snapshots", ("store",), "moved out, for readers of policy `every`"),
    Exported("eval_lag_seconds", "gauge", "s", _READERS, "end of a step -> its metrics, or till now if that is longer"),
    Exported("eval_lag_steps", "gauge", "steps", _READERS, "from the last that is done to the newest snapshot"),
    Exported("skipped_evaluations", "gauge", "snapshots", _READERS, "left out by policy `latest` for newer ones"),
    Exported("restarts", "counter", "", ("trainer", *_READERS, "store"), "of the role, by cause", (*TAGS, "cause")),
)
BY_NAME = {metric.name: metric for metric in EXPORTED}


class Sample(NamedTuple):
    """A value of a gauge. `dataset` is empty of a role that has none."""

    name: str
    value: float
    role: str
    dataset: str = ""


def samples(role: str, dataset: str, values: Mapping[str, float | None]) -> Iterator[Sample]:
    """Of those values that there are: Prometheus has no use for NaN, and Ray drops it."""
    for name, value in values.items():
        if value is not None and math.isfinite(value):
            yield Sample(name, float(value), role, dataset)


def trainer_samples(
    dataset: str, status: Mapping[str, Any], report: Mapping[str, float], throughput: Mapping[str, float]
) -> list[Sample]:
    """status: Trainer.status. report: the metrics of its last report. throughput: what `throughput` gave with it."""
    values = {name: status[name] for name in ("step", "max_steps", "skipped_updates", "rollbacks", "bad_records")}
    for name in ("steps_per_second", "examples_per_second", "loss", "input_wait_fraction"):
        values[name] = report.get(name)
    values["learning_rate"] = _largest(report, "learning_rate")
    values["grad_norm"] = _largest(report, "grad_norm/all")
    return list(samples("trainer", dataset, values | dict(throughput)))


def throughput(
    *, steps: int, steps_per_second: float | None, tokens: float | None, flops: float | None, peak: float | None
) -> dict[str, float]:
    """tokens_per_second, flops_per_second and mfu, as far as they are known.

    tokens: of all `steps` together; flops: of one step; peak: floating-point operations a second of all devices.
    """
    found: dict[str, float] = {}
    if not steps_per_second or steps <= 0:
        return found
    if tokens is not None:
        found["tokens_per_second"] = tokens / steps * steps_per_second
    if flops:
        found["flops_per_second"] = flops * steps_per_second
        if peak:
            found["mfu"] = found["flops_per_second"] / peak
    return found


def _largest(report: Mapping[str, float], name: str) -> float | None:
    """Of the metric or, if there are several learners, of those of all of them, which end with their names."""
    return max((value for key, value in report.items() if key == name or key.startswith(f"{name}/")), default=None)


def store_samples(status: Mapping[str, Any], now: float) -> list[Sample]:
    """status: SnapshotStore.status. now: Unix seconds."""
    newest = status["newest"]
    of_store = {
        "snapshot_age_seconds": None if newest is None else max(0.0, now - newest[1]),
        "store_snapshots": status["held"],
        "store_snapshots_on_disk": status["on_disk"],
        "store_bytes": status["bytes"],
    }
    found = list(samples("store", "", of_store))
    for name, reader in status["readers"].items():
        values = {"eval_lag_steps": reader["behind"], "skipped_evaluations": reader["skipped"]}
        found += samples(*role_and_dataset(name), values)
    return found


def reader_samples(
    role: str, dataset: str, metrics: Mapping[str, float], step: int | None, working_since: float | None, now: float
) -> list[Sample]:
    """metrics, step: of the last result. working_since: of this reader, see SnapshotStore.status."""
    lags = [metrics["lag_seconds"]] if "lag_seconds" in metrics else []
    if working_since is not None:
        lags.append(max(0.0, now - working_since))
    values = {
        "step": step,
        "eval_lag_seconds": max(lags, default=None),
        "loss": metrics.get("loss"),
        "examples_per_second": metrics.get("examples_per_second"),
    }
    return list(samples(role, dataset, values))


def role_and_dataset(name: str) -> tuple[str, str]:
    """Of what the live view calls a role: `Evaler(test)` -> ("evaler", "test"), `Trainer` -> ("trainer", "")."""
    found = re.fullmatch(r"(\w+?)(?:\((.*)\))?", name)
    assert found is not None, name
    role = found[1].lower()
    return "store" if role == "snapshotstore" else role, found[2] or ""


def table(metrics: Iterable[Exported] = EXPORTED) -> str:
    """The rows of the table in docs/monitoring.md."""
    rows = ((f"`{m.prometheus_name}`", ", ".join(m.roles), m.unit or " ", m.help) for m in metrics)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
