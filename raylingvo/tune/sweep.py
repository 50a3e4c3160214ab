"""A sweep: trials of an experiment under Ray Tune, from the request to its result."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.exceptions import RayTaskError

from raylingvo import config
from raylingvo.actors.cluster import Cluster, connected, object_store_bytes
from raylingvo.actors.driver import Order
from raylingvo.actors.logdir import hold
from raylingvo.actors.run import noted_signals
from raylingvo.data.dataset import FixedShapeDataset
from raylingvo.errors import RequestError
from raylingvo.experiment import Experiment
from raylingvo.monitor import text
from raylingvo.tune import record, spaces
from raylingvo.tune.board import Board, open_board
from raylingvo.tune.book import Book
from raylingvo.tune.conductor import Conductor
from raylingvo.tune.hub import Hub
from raylingvo.tune.outlook import Outlook, look_ahead, said_of_memory
from raylingvo.tune.request import Request, make_options, make_request
from raylingvo.tune.schedulers import PAUSING, REMEMBERING, AshaScheduler, PopulationScheduler, make_scheduler
from raylingvo.tune.search import Listed, Optuna, Source, SweepSearch, recorded_config
from raylingvo.tune.trainable import TrialActor
from raylingvo.tune.trial_run import Home

if TYPE_CHECKING:
    from pandas import DataFrame

# A process of a trial that dies takes the trial's roles with it; the trial goes on from its folder in another.
_MAX_DEATHS = 3
_PLACE = "raylingvo_trial"  # a resource of our own cluster, one for each trial that may run at once
COMPILED = ".compiled"


class SweepFailed(RuntimeError):
    """No trial has come to an end, or too many have failed. `result` is what there is."""

    def __init__(self, message: str, result: SweepResult):
        super().__init__(message)
        self.result = result


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What has come of a sweep."""

    logdir: Path
    sweep: record.Sweep

    @property
    def status(self) -> str:
        return self.sweep.status

    @property
    def best(self) -> record.Trial | None:
        """The trial with the best value of the metric at any of its steps."""
        return record.best_trial(self.sweep)

    def frame(self) -> DataFrame:
        """A row for each trial, best first; the columns of leaderboard.csv."""
        return record.frame(self.sweep)

    def to_json(self) -> dict[str, Any]:
        """What `tune sweep --json` prints."""
        best = self.best
        of_best = None
        if best is not None:
            step, value = best.best(self.sweep.mode) or (None, None)
            of_best = {
                "trial": best.number,
                "params": dict(best.params),
                "step": step,
                self.sweep.metric: value,
                "logdir": str(self.logdir / best.logdir),
                "config": str(self.logdir / "best" / "config.yaml"),
            }
        counts: dict[str, int] = {}
        for trial in self.sweep.trials:
            counts[trial.status] = counts.get(trial.status, 0) + 1
        return {
            "experiment": self.sweep.request["experiment"],
            "status": self.sweep.status,
            "stop_reason": self.sweep.stop_reason,
            "metric": self.sweep.metric,
            "mode": self.sweep.mode,
            "best": of_best,
            "trials": counts,
            "steps": sum(trial.step for trial in self.sweep.trials),
            "seconds": (self.sweep.ended or time.time()) - self.sweep.started,
            "logdir": str(self.logdir),
            "report": str(self.logdir / "report.html"),
        }


def sweep(
    experiment: Experiment,
    space: Mapping[str, Any],
    *,
    logdir: str | os.PathLike[str],
    metric: str,
    mode: str,
    address: str | None = None,
    board: Board | None = None,
    retry_failed: bool = False,
    **options: Any,
) -> SweepResult:
    """Searches `space` for parameters that make a metric best, or goes on with it in a folder.

    space: dotted key -> a space, as text such as "loguniform(1e-4, 1e-1)" or of raylingvo.tune.spaces, or a list of
    values. metric: DATASET/NAME of an Evaler or Decoder. options: the fields of raylingvo.tune.request.Options.
    retry_failed: trials of the folder that have failed run again. Ctrl-C leaves a folder that the same call goes on
    with, status "interrupted".
    Raises RequestError before anything starts if the request is wrong, SweepFailed if all trials fail, or too many.
    """
    request = make_request(experiment, space, metric=metric, mode=mode, options=make_options(options))
    directory = Path(logdir).absolute()
    for name in dict.fromkeys([experiment.train.dataset, *experiment.eval, *experiment.decode]):
        experiment.datasets[name].check()
    source = _source(request)
    _check(request, source)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--logdir {directory}: cannot be created ({error.strerror})") from error
    with hold(directory), board or open_board() as shown:
        total = source.size or request.samples
        book = Book(request, total, directory, shown)
        recorded = _recorded(book, source, total, retry_failed, told_again=request.options.scheduler == "asha")
        if book.all_ended():
            return _ended(book.sweep() if book.status == "finished" else book.close(*book.outcome()), directory)
        places = {} if request.options.concurrency is None else {_PLACE: float(request.options.concurrency)}
        with connected(address, places) as cluster, noted_signals() as asked_to_stop, _tune_settings(request, total):
            if request.options.concurrency is not None and not cluster.own and request.options.scheduler in PAUSING:
                raise RequestError(
                    f"--concurrency: in a cluster that others started, {request.options.scheduler} runs as many trials "
                    "as there is room for; --resources says what each takes"
                )
            outlook = _look_ahead(request, directory, cluster)
            book.open()
            _say_what_is_ahead(request, book, recorded, total, outlook.nbytes)
            decode = {name: request.experiment.decode[name] for name in outlook.decoders}
            request = dataclasses.replace(request, experiment=dataclasses.replace(request.experiment, decode=decode))
            conductor = Conductor(request, book, asked_to_stop)
            try:
                _fit(request, book, cluster, conductor, source, recorded, total)
            except BaseException as error:
                status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                book.note(status, f"{type(error).__name__}: {error}")
                raise
            if conductor.wrong_metric is not None:
                if book.is_new:
                    book.forget()  # or the folder would refuse the right one
                else:
                    book.close(*conductor.ending())
                raise RequestError(conductor.wrong_metric)
            ended = book.close(*conductor.ending())
    return _ended(ended, directory)


def _ended(ended: record.Sweep, directory: Path) -> SweepResult:
    result = SweepResult(directory, ended)
    if ended.status == "failed":
        raise SweepFailed(ended.stop_reason or "", result)
    return result


def _source(request: Request) -> Source:
    options = request.options
    if options.search == "optuna":
        return Optuna(request.space, mode=request.mode, seed=options.seed)
    return Listed(request.space, search=options.search, samples=request.samples, seed=options.seed)


def _recorded(book: Book, source: Source, total: int, retry_failed: bool, told_again: bool) -> list[dict[str, Any]]:
    """Configs of the trials that the folder has, and what the source is told of them."""
    configs = []
    for number in range(total):
        if number not in book.trials:
            break
        trial = book.trials[number]
        if trial.status == "failed" and retry_failed:
            trial = book.update(number, status="pending", error=None)
        # What population based training has changed a run knows itself; it begins as it did then.
        params = source.suggest(number) if isinstance(source, Listed) else trial.params
        assert params is not None
        configs.append(recorded_config(trial, params, told_again=told_again))
        best = trial.best(book.request.mode)
        if isinstance(source, Optuna) and trial.status in (*record.ENDED, "paused"):
            source.observe(number, params, None if trial.status == "failed" or best is None else best[1])
    return configs


def _check(request: Request, source: Source) -> None:
    """What one value alone cannot tell: whether all those of a trial fit together."""
    if isinstance(source, Listed):
        for number, params in enumerate(source.params):
            try:
                config.override(request.experiment, params)
            except RequestError as error:
                raise RequestError(f"trial {number} of {source.size}: {error}") from error


def _look_ahead(request: Request, directory: Path, cluster: Cluster) -> Outlook:
    """What the experiment's code tells. In a process of its own: in this one JAX would take the devices."""
    order = Order.of_this_process("", request.experiment, directory, time.time(), cluster)
    exchanged = request.space if request.options.scheduler == "pbt" else {}
    variants = [{key: value} for key, space in exchanged.items() for value in spaces.examples(space)]
    try:
        return ray.get(ray.remote(look_ahead).options(num_cpus=0).remote(order, request.metric, variants))
    except RayTaskError as error:
        if isinstance(error.cause, RequestError):
            raise error.cause from None
        raise


def _say_what_is_ahead(
    request: Request, book: Book, recorded: Sequence[Mapping[str, Any]], total: int, size: int
) -> None:
    """size: bytes of a checkpoint."""
    most = 2 * total * size
    free = shutil.disk_usage(book.directory).free
    book.event(
        f"{total} trials of {request.max_steps} steps; on disk at most 2 checkpoints of {text.size(size)} each: "
        f"{text.size(most)} (free: {text.size(free)})"
    )
    if most > free:
        book.event("there is not enough room on the disk for all checkpoints")
    ended = sum("end" in trial for trial in recorded)
    if request.options.scheduler == "pbt":
        for line in said_of_memory(total - ended, size, object_store_bytes()):
            book.event(line)
    if recorded:
        of_it = f"{text.count(ended, 'trial')} of {len(recorded)} known"
        book.event(f"going on: {of_it} {'has' if ended == 1 else 'have'} ended")
    every = request.experiment.train.snapshots.every_steps
    if request.options.scheduler != "fifo" and every * 3 > request.max_steps:
        book.event(
            f"the metric comes every {every} of {request.max_steps} steps: few for {request.options.scheduler}; "
            "--set train.snapshots.every_steps=N gives more"
        )


def _fit(
    request: Request,
    book: Book,
    cluster: Cluster,
    conductor: Conductor,
    source: Source,
    recorded: Sequence[Mapping[str, Any]],
    total: int,
) -> None:
    known = list(book.trials.values()) if request.options.scheduler in REMEMBERING else []
    reported = {trial.number: trial.last[0] for trial in known if trial.last is not None}
    hub = ray.remote(Hub).options(num_cpus=0, max_concurrency=1000).remote(reported)
    # In a cluster of our own places are a resource.
    at_once = None if cluster.own else request.options.concurrency
    room = _most_at_once(request)
    scheduler = make_scheduler(request, total, conductor.exploit, conductor.is_over, known, room=room, at_once=at_once)
    halving = scheduler if isinstance(scheduler, AshaScheduler) else None
    population = scheduler.population if isinstance(scheduler, PopulationScheduler) else None
    conductor.open(hub, population, halving)
    experiment, directory = request.experiment, book.directory
    home = Home(
        order=Order.of_this_process("", experiment, directory, time.time(), cluster),
        cluster=cluster,
        hub=hub,
        metric=request.metric,
        mode=request.mode,
        shares_states=request.options.scheduler == "pbt",
        runs_beside=room - 1,
        environment={
            "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(directory / COMPILED)),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        },
        data=[ray.put((data, data.open())) for data in _in_memory(experiment)],
    )
    trainable = tune.with_resources(tune.with_parameters(TrialActor, home=home), _resources(request, cluster))
    search = SweepSearch(
        source,
        recorded,
        mode=request.mode,
        samples=total,
        over=conductor.is_over,
        at_once=None if halving else at_once,
        waits=halving.waits if halving else None,
        may_begin=halving.may_begin if halving else lambda: True,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="raylingvo-sweep-") as scratch:
            tune.run(  # and not a Tuner, which would write us all to a file
                trainable,
                name="sweep",
                storage_path=scratch,
                num_samples=-1,  # the search knows
                search_alg=search,
                scheduler=scheduler,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: f"{trial.config['trial']:04d}",
                max_failures=_MAX_DEATHS,
                callbacks=[conductor],
                stop=conductor.stopper,
                verbose=0,
                raise_on_failed_trial=False,
            )
    finally:
        conductor.close()


def _in_memory(experiment: Experiment) -> Iterator[FixedShapeDataset]:
    """The datasets that trials would each read into memory."""
    for name in dict.fromkeys([experiment.train.dataset, *experiment.eval, *experiment.decode]):
        data = experiment.datasets[name]
        if isinstance(data, FixedShapeDataset) and data.in_memory:
            yield data


def _resources(request: Request, cluster: Cluster) -> tune.PlacementGroupFactory:
    """What Tune reserves for a trial: room for its roles, which take theirs from it."""
    resources = request.experiment.resources
    place = {_PLACE: 1.0} if cluster.own and request.options.concurrency is not None else {}
    roles = [
        *[resources.trainer] * resources.hosts,
        *[resources.evaler] * len(request.experiment.eval),
        *[resources.decoder] * len(request.experiment.decode),
        resources.store,
    ]
    bundles = [role.amounts for role in roles if role.amounts]
    return tune.PlacementGroupFactory([place, *bundles])


def _most_at_once(request: Request) -> int:
    """How many trials there will be room for."""
    have, least = ray.cluster_resources(), request.options.concurrency or 1_000_000
    wanted: dict[str, float] = {}
    for bundle in _resources(request, Cluster(None, own=False, may_grow=False)).bundles:
        for name, amount in bundle.items():
            wanted[name] = wanted.get(name, 0.0) + amount
    for name, amount in wanted.items():
        least = min(least, max(1, int(have.get(name, 0.0) / amount)))
    return least


@contextlib.contextmanager
def _tune_settings(request: Request, total: int) -> Iterator[None]:
    """Tune is not to write what the sweep's own record has, to print, or to take our signals."""
    settings = {
        # How many trials there are before there is room for them. Tune's hyperband compares those that there are: one
        # after the other, each would have nobody to be compared with.
        "TUNE_MAX_PENDING_TRIALS_PG": str(total) if request.options.scheduler == "hyperband" else "1",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the last result of a trial without an evaluation
        "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
