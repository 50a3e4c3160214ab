"""What a sweep is asked for, checked against the experiment before anything starts."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from raylingvo import config
from raylingvo._config import text as config_text
from raylingvo.config import FrozenDict
from raylingvo.errors import RequestError
from raylingvo.experiment import Best, Experiment
from raylingvo.tune import spaces
from raylingvo.tune.spaces import Space

Scheduler = Literal["fifo", "asha", "hyperband", "median", "pbt"]
Search = Literal["random", "grid", "optuna"]
Mode = Literal["min", "max"]

_FIRST_DECISION = 9  # a ninth of the steps: with a reduction of 3 there are decisions after 1/9 and 1/3 of them

_USED_BY = {"grace_steps": ("asha", "hyperband", "median", "pbt"), "reduction_factor": ("asha", "hyperband")}
# What the sweep itself decides on.
_FIXED = ("name.", "train.max_steps.", "train.checkpoints.", "resources.", "eval.", "decode.")
# What population based training can change while a trial runs.
_CHANGEABLE = ("learner.", "task.", "train.vn_", "train.ema_")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How the search goes; the command line's options of the same names, or the keys of a sweep file.

    samples: how many trials; of each combination of values if there is a grid. grace_steps: no trial is judged before,
    pbt judges each after so many steps, and hyperband counts in them. None: see `Request`.
    """

    samples: int | None = None
    scheduler: Scheduler = "fifo"
    search: Search = "random"
    seed: int = 0
    max_steps: int | None = None  # None: the experiment's
    grace_steps: int | None = None
    reduction_factor: int | None = None  # of asha and hyperband: one in so many goes on; None: 3
    concurrency: int | None = None  # how many trials run at once; None: as many as there is room for
    max_failures: int | None = None  # more failed trials than this end the sweep; None: none does
    resources: Mapping[str, str] = FrozenDict()  # of each trial: key below `resources.` -> value, as for --set

    def __post_init__(self) -> None:
        for name, choices in (("scheduler", Scheduler), ("search", Search)):
            if (value := getattr(self, name)) not in get_args(choices):
                close = difflib.get_close_matches(str(value), get_args(choices), n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))} (got {value!r}){hint}")
        bounds = {"samples": 1, "max_steps": 1, "grace_steps": 1, "concurrency": 1, "max_failures": 0, "seed": 0}
        for name, least in {**bounds, "reduction_factor": 2}.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} must be >= {least} (got {value})")
        object.__setattr__(self, "resources", FrozenDict(self.resources))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A sweep over variants of `experiment`, which is what each trial runs but for its parameters.

    space: dotted key -> its space, with values of the field's type. metric: DATASET/NAME of an Evaler or a Decoder.
    base: the same experiment, but that it keeps checkpoints as it is asked to by itself.
    """

    experiment: Experiment
    base: Experiment
    space: Mapping[str, Space]
    metric: str
    mode: Mode
    options: Options
    samples: int
    grace_steps: int

    @property
    def max_steps(self) -> int:
        """The steps of a trial that nobody stops."""
        return self.experiment.train.max_steps

    @property
    def reduction_factor(self) -> int:
        """Of asha and hyperband: one in so many trials goes on."""
        return self.options.reduction_factor or 3

    def to_json(self) -> dict[str, Any]:
        """What identifies the sweep, and how it runs."""
        return {
            "experiment": self.experiment.name,
            "params": {key: str(space) for key, space in self.space.items()},
            "metric": self.metric,
            "mode": self.mode,
            **{field.name: getattr(self.options, field.name) for field in dataclasses.fields(Options)},
            "samples": self.samples,
            "reduction_factor": self.reduction_factor,
            "grace_steps": self.grace_steps,
            "max_steps": self.max_steps,
            "resources": dict(self.options.resources),
        }


def make_request(
    experiment: Experiment, params: Mapping[str, Any], *, metric: str, mode: str, options: Options
) -> Request:
    """params: dotted key -> a Space, the text of one, or a list of values. Raises RequestError for what is wrong."""
    if mode not in get_args(Mode):
        raise RequestError(f"--mode must be min or max (got {mode!r})")
    if not params:
        raise RequestError(
            "a sweep needs at least one --param KEY=SPACE, such as learner.learning_rate=loguniform(1e-4,1e-1)"
        )
    steps = {} if options.max_steps is None else {"train.max_steps": options.max_steps}
    resources = {f"resources.{key}": value for key, value in options.resources.items()}
    experiment = config.override(experiment, {**steps, **resources})
    _check_metric(experiment, metric)
    space = {}
    for key, given in params.items():
        if f"{key}.".startswith(_FIXED):
            raise RequestError(f"--param {key}: all trials have the same; see --set, --max-steps, --resources")
        parsed = given if isinstance(given, Space) else spaces.parse(key, given)
        space[key] = spaces.typed(experiment, key, parsed)
    grids = any(isinstance(one, spaces.Grid) for one in space.values())
    samples = (1 if grids or options.search == "grid" else 10) if options.samples is None else options.samples
    if options.search == "grid" and samples != 1:
        raise RequestError(f"--search grid has each combination once, and no --samples (got {samples})")
    for name, users in _USED_BY.items():
        if getattr(options, name) is not None and options.scheduler not in users:
            option = name.replace("_", "-")
            raise RequestError(
                f"--{option} means nothing to --scheduler {options.scheduler}; it is of {', '.join(users)}"
            )
    if options.scheduler == "hyperband" and options.search == "optuna":
        raise RequestError(
            "--scheduler hyperband needs all trials before the first begins: there is nothing for --search optuna to "
            "learn from; use --scheduler asha"
        )
    if options.scheduler == "pbt":
        _check_population(experiment, space, options)
    base = experiment
    # On disk only what a trial goes on from, and its best.
    kept = dataclasses.replace(
        experiment.train.checkpoints,
        keep_last=1,
        keep_every_seconds=None,
        best=Best(metric=metric, mode=mode),  # type: ignore[arg-type]
    )
    experiment = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, checkpoints=kept))
    grace = options.grace_steps
    if grace is None:
        # A metric comes with a snapshot: decisions between two would be decisions without news.
        every = experiment.train.snapshots.every_steps
        grace = math.ceil(max(1, experiment.train.max_steps / _FIRST_DECISION) / every) * every
    if grace > experiment.train.max_steps and options.scheduler != "fifo":
        raise RequestError(
            f"--scheduler {options.scheduler}: the first decision would fall after {grace} steps, a trial has "
            f"{experiment.train.max_steps}; --set train.snapshots.every_steps=N gives earlier metrics, "
            "--grace-steps N earlier decisions"
        )
    return Request(
        experiment=experiment,
        base=base,
        space=space,
        metric=metric,
        mode=mode,  # type: ignore[arg-type]
        options=options,
        samples=samples,
        grace_steps=grace,
    )


def read_file(path: Path) -> dict[str, Any]:
    """A sweep file: keys `experiment`, `set`, `params`, `metric`, `mode` and those of Options. Raises RequestError."""
    try:
        value = config_text.read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"--config {path}: cannot be read ({error.strerror})") from error
    except (RequestError, UnicodeDecodeError) as error:
        raise RequestError(f"--config {path}: is not YAML ({' '.join(str(error).split())})") from error
    known = ["experiment", "set", "params", "metric", "mode", *(field.name for field in dataclasses.fields(Options))]
    if not isinstance(value, dict):
        raise RequestError(f"--config {path}: expected keys and values ({', '.join(known)})")
    for key in value:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise RequestError(f"--config {path}: no key {key!r}; {hint}")
    for key in ("experiment", "metric", "mode"):
        if not isinstance(value.get(key, ""), str):
            raise RequestError(f"--config {path}: {key} must be a text (got {value[key]!r})")
    for key in ("set", "params", "resources"):
        if not isinstance(value.get(key, {}), dict):
            raise RequestError(f"--config {path}: {key} must have keys and values (got {value[key]!r})")
    return value


def make_options(given: Mapping[str, Any]) -> Options:
    """Options from values of the command line or a file. Raises RequestError in one line."""
    try:
        values = {key: value for key, value in given.items() if value is not None}
        if "resources" in values:
            values["resources"] = {key: str(value) for key, value in values["resources"].items()}
        return config.override(Options(), values)
    except RequestError as error:
        # `max_steps must be ..` is said of an option, `unknown key ..` is not.
        name = str(error).partition(" ")[0].rstrip(":")
        known = name in {field.name for field in dataclasses.fields(Options)}
        raise RequestError(f"--{name.replace('_', '-')}{str(error)[len(name) :]}" if known else str(error)) from error


def _check_metric(experiment: Experiment, metric: str) -> None:
    dataset, _, name = metric.partition("/")
    if not (dataset and name):
        raise RequestError(f"--metric must be DATASET/NAME, such as test/accuracy (got {metric!r})")
    if dataset not in {*experiment.eval, *experiment.decode}:
        raise RequestError(
            f"--metric {metric}: {dataset!r} is neither evaluated nor decoded; eval has "
            f"{', '.join(experiment.eval) or 'none'}, decode has {', '.join(experiment.decode) or 'none'}"
        )


def _check_population(experiment: Experiment, space: Mapping[str, Space], options: Options) -> None:
    if options.search != "random":
        raise RequestError(f"--scheduler pbt goes with --search random (got {options.search})")
    if experiment.resources.hosts > 1:
        raise RequestError(
            f"--scheduler pbt: a trial must have one host (got resources.hosts={experiment.resources.hosts})"
        )
    for key in space:
        if not key.startswith(_CHANGEABLE):
            raise RequestError(
                f"--scheduler pbt changes values while trials run, and {key} cannot change then; "
                f"keys may begin with {', '.join(_CHANGEABLE)}"
            )
