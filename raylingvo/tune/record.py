"""The record of a sweep: what was asked for and what came of each trial, as `sweep.json` and `leaderboard.csv`."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from raylingvo.errors import RequestError
from raylingvo.monitor.atomic import write_atomically

if TYPE_CHECKING:
    from pandas import DataFrame

# stopped: by the scheduler, as unpromising.
Status = Literal["pending", "running", "paused", "finished", "stopped", "interrupted", "failed"]
ENDED = ("finished", "stopped", "failed")  # for good
SweepStatus = Literal["running", "finished", "interrupted", "failed"]

RECORD = "sweep.json"
LEADERBOARD = "leaderboard.csv"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep. Raises ValueError for a status that there is not and for steps that do not increase."""

    number: int
    params: Mapping[
        str, Any
    ]  # dotted key -> bool, int, float, str or None; the last ones, if the scheduler changes them
    status: Status = "pending"
    step: int = 0  # trained steps
    history: tuple[tuple[int, float], ...] = ()  # (step, value of the metric); a value need not be finite
    seconds: float = 0.0  # it has run
    error: str | None = None  # one line, of a failed one
    stop_reason: str | None = None
    # Population based training: {"step", "from_trial", "params", "before": those that were}.
    changes: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise ValueError(f"status must be one of {', '.join(get_args(Status))} (got {self.status!r})")
        if any(a >= b for (a, _), (b, _) in itertools.pairwise(self.history)):
            raise ValueError(f"history of trial {self.number} must have steps that increase")

    @property
    def logdir(self) -> str:
        """Relative to the sweep's folder."""
        return f"trials/{self.number:04d}"

    @property
    def last(self) -> tuple[int, float] | None:
        """The newest (step, value); the value may be NaN."""
        return self.history[-1] if self.history else None

    def best(self, mode: str) -> tuple[int, float] | None:
        """The best (step, value), the first of equals; None if no value is finite. mode: min or max."""
        finite = [point for point in self.history if math.isfinite(point[1])]
        return {"min": min, "max": max}[mode](finite, key=lambda point: point[1], default=None)

    def params_at(self, step: int) -> Mapping[str, Any]:
        """The parameters with which it trained up to a step."""
        later = next((change for change in self.changes if change["step"] >= step), None)
        return self.params if later is None else later.get("before", self.params)

    def to_json(self) -> dict[str, Any]:
        """A JSON value; what is not finite, which JSON cannot say, is null in the history."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {
            "params": _encode(self.params),
            "history": [[step, value if math.isfinite(value) else None] for step, value in self.history],
            "changes": [
                {name: _encode(part) if isinstance(part, Mapping) else part for name, part in change.items()}
                for change in self.changes
            ],
        }

    @classmethod
    def from_json(cls, value: Any) -> Trial:
        """The opposite of `to_json`. Raises KeyError, TypeError, ValueError or AttributeError for anything else."""
        fields = {field.name: value[field.name] for field in dataclasses.fields(cls)}
        return cls(
            **fields
            | {
                "params": _decode(fields["params"]),
                "history": tuple((int(s), math.nan if v is None else float(v)) for s, v in fields["history"]),
                "changes": tuple(
                    {name: _decode(part) if isinstance(part, Mapping) else part for name, part in change.items()}
                    for change in fields["changes"]
                ),
            }
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A search, finished or under way.

    request: a JSON value, what was asked for; has at least `experiment`, `params` (key -> text of its space), `metric`
    (DATASET/NAME) and `mode` (min, max), and as a rule `scheduler`, `search`, `samples`, `seed`.
    """

    request: Mapping[str, Any]
    status: SweepStatus
    started: float  # Unix seconds, as is ended
    ended: float | None = None
    stop_reason: str | None = None
    trials: tuple[Trial, ...] = ()

    def __post_init__(self) -> None:
        if self.status not in get_args(SweepStatus):
            raise ValueError(f"status must be one of {', '.join(get_args(SweepStatus))} (got {self.status!r})")
        if self.mode not in ("min", "max"):
            raise ValueError(f"request.mode must be min or max (got {self.mode!r})")

    @property
    def metric(self) -> str:
        """DATASET/NAME."""
        return self.request["metric"]

    @property
    def mode(self) -> str:
        """min or max: which values of the metric are the better ones."""
        return self.request["mode"]

    @property
    def keys(self) -> list[str]:
        """The parameters' dotted keys, as asked for; any that only trials have come last."""
        return list(dict.fromkeys([*self.request["params"], *(key for trial in self.trials for key in trial.params)]))

    def to_json(self) -> dict[str, Any]:
        """A JSON value; see `Trial.to_json`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"request": dict(self.request), "trials": [trial.to_json() for trial in self.trials]}

    @classmethod
    def from_json(cls, value: Any) -> Sweep:
        """The opposite of `to_json`. Raises KeyError, TypeError, ValueError or AttributeError for anything else."""
        fields = {field.name: value[field.name] for field in dataclasses.fields(cls)}
        fields["trials"] = tuple(Trial.from_json(trial) for trial in fields["trials"])
        sweep = cls(**fields)
        _ = sweep.metric, sweep.keys, sweep.request["experiment"]  # now rather than in the middle of a report
        return sweep


def ranked(sweep: Sweep) -> list[Trial]:
    """The trials, best first: those without a finite value after the others, failed ones after them; ties by number."""

    def key(trial: Trial) -> tuple[bool, bool, float, int]:
        best = trial.best(sweep.mode)
        value = 0.0 if best is None else best[1] if sweep.mode == "min" else -best[1]
        return trial.status == "failed", best is None, value, trial.number

    return sorted(sweep.trials, key=key)


def best_trial(sweep: Sweep) -> Trial | None:
    """The first of `ranked`; None while no trial that has not failed has a finite value."""
    first = next(iter(ranked(sweep)), None)
    return None if first is None or first.status == "failed" or first.best(sweep.mode) is None else first


def write(sweep: Sweep, directory: Path) -> None:
    """Writes `sweep.json` and `leaderboard.csv`, each atomically. Raises OSError, naming the file."""
    value = sweep.to_json()
    # A line for each trial: what a sweep of hundreds says stays in reach of grep and diff.
    trials = ",\n".join(json.dumps(trial, allow_nan=False) for trial in value.pop("trials"))
    head = json.dumps(value, indent=1, allow_nan=False).removesuffix("\n}")
    write_atomically(Path(directory) / RECORD, f'{head},\n "trials": [\n{trials}\n]}}\n')
    write_atomically(Path(directory) / LEADERBOARD, _csv(sweep))


def read(directory: Path) -> Sweep:
    """What `write` wrote. Raises RequestError if there is no record or a damaged one."""
    path = Path(directory) / RECORD
    try:
        return Sweep.from_json(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RequestError(f"{path} does not exist: {directory} is not the folder of a sweep") from error
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise RequestError(f"{path} is damaged: {type(error).__name__}: {' '.join(str(error).split())}") from error


def columns(sweep: Sweep) -> list[str]:
    """Of `rows`, `frame` and leaderboard.csv. METRIC is the best value, METRIC/last the newest."""
    metric, keys = sweep.metric, [f"params/{key}" for key in sweep.keys]
    return [
        *("rank", "trial", "status", metric, "best_step", f"{metric}/last", "step", "seconds"),
        *keys,
        *("error", "logdir"),
    ]


def rows(sweep: Sweep) -> list[dict[str, Any]]:
    """A row for each trial, best first, with `columns` as keys; None where there is nothing."""
    return [_row(sweep, rank, trial) for rank, trial in enumerate(ranked(sweep), start=1)]


def frame(sweep: Sweep) -> DataFrame:
    """`rows` as a pandas DataFrame."""
    from pandas import DataFrame  # 0.5 s that only those pay who ask

    return DataFrame(rows(sweep), columns=columns(sweep))


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Key -> its end, as much of it as tells it from the others; what is long is parted: `decoder…dropout`."""
    parts = [key.split(".") for key in keys]

    def short(key: list[str]) -> str:
        for depth in range(1, len(key) + 1):
            end = key[-depth:]
            # A number alone (`layers.0`) says nothing.
            if not end[0].isdigit() and sum(other[-depth:] == end for other in parts) == 1:
                outer = (end[0], end[-1])
                if depth > 2 and sum((other[-depth:][0], other[-1]) == outer for other in parts) == 1:
                    return "…".join(outer)
                return ".".join(end)
        return ".".join(key)

    return {key: short(key_parts) for key, key_parts in zip(keys, parts, strict=True)}


def value_text(value: Any, *, exact: bool = False) -> str:
    """A parameter's value as YAML has it, floats with four digits unless `exact`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) and not exact else str(value)


def _row(sweep: Sweep, rank: int, trial: Trial) -> dict[str, Any]:
    best_step, best = trial.best(sweep.mode) or (None, None)
    last = None if trial.last is None else trial.last[1]
    values = [trial.params.get(key) for key in sweep.keys]
    row = [rank, trial.number, trial.status, best, best_step, last, trial.step, trial.seconds]
    return dict(zip(columns(sweep), [*row, *values, trial.error, trial.logdir], strict=True))


def _csv(sweep: Sweep) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns(sweep), lineterminator="\n")
    writer.writeheader()
    for row in rows(sweep):
        writer.writerow({key: "" if value is None else value_text(value, exact=True) for key, value in row.items()})
    return out.getvalue()


def _encode(params: Mapping[str, Any]) -> dict[str, Any]:
    """Infinity is a fair value of a clip, say, and JSON has none: it is written as {"float": "inf"}."""
    return {
        key: {"float": str(value)} if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in params.items()
    }


def _decode(params: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: float(value["float"]) if isinstance(value, Mapping) and value.keys() == {"float"} else value
        for key, value in params.items()
    }
