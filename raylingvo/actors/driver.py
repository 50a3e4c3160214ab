"""The driver of a run as an actor in the cluster: it goes on when the command that started it has ended."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylingvo import config
from raylingvo.actors import memory, metrics
from raylingvo.actors.calls import POLL_SECONDS
from raylingvo.actors.cluster import Cluster
from raylingvo.data.paths import data_root
from raylingvo.errors import DiskError, RequestError
from raylingvo.monitor.live_plain import PlainView
from raylingvo.monitor.live_tee import TeeView
from raylingvo.monitor.log_file import LogFile
from raylingvo.monitor.relay import News, Relay
from raylingvo.monitor.summary import format_summary

# As the roles' (remote.py), this module must not import JAX.
if TYPE_CHECKING:
    from raylingvo.experiment import Experiment

NAMESPACE = "raylingvo"  # of the drivers' names, which are the ids of their runs
STARTER = "starter"  # the follower that waits until the run has begun
LOG = Path("control", "driver.log")


class Ending(NamedTuple):
    """How `raylingvo run` would have ended."""

    exit_status: int
    result: dict[str, Any] | None
    message: str = ""
    trace: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """What the driver is told by the command that starts it: plain data, unpickled without the user's modules."""

    run: str
    name: str  # of the experiment
    config: str
    logdir: str
    started: float  # Unix seconds
    cluster: Cluster
    command: Sequence[str]
    directory: str
    import_paths: Sequence[str]
    environment: Mapping[str, str]

    @classmethod
    def of_this_process(cls, run: str, experiment: Experiment, logdir: Path, started: float, cluster: Cluster) -> Order:
        return cls(
            run=run,
            name=experiment.name,
            config=config.dump(experiment),
            logdir=str(logdir),
            started=started,
            cluster=cluster,
            command=list(sys.argv),
            directory=os.getcwd(),  # noqa: PTH109 - a string, for a process of perhaps another Python
            import_paths=[path for path in sys.path if path],
            # What roles are told by their driver, or what it looks at itself.
            environment={"RAYLINGVO_DATA": str(data_root()), **metrics.environment()}
            | {name: os.environ[name] for name in memory.KEEP if name in os.environ},
        )

    def take_place(self) -> Experiment:
        """Makes this process that of the command; returns the experiment."""
        os.environ.update(self.environment, JAX_PLATFORMS="cpu")  # it computes nothing, and must not take a GPU
        os.chdir(self.directory)
        sys.argv[:] = self.command
        sys.path.extend(path for path in self.import_paths if path not in sys.path)
        from raylingvo.experiment import Experiment

        return config.load(self.config, Experiment)


class DriverNews(News):
    run: str
    experiment: str
    logdir: str


class DriverActor:
    """Runs what `order` says in a thread, and ends with it. Its roles are its own: they end if it is killed."""

    def __init__(self, order: Order):
        self._order = order
        self._me = ray.get_runtime_context().current_actor
        self._relay = Relay([STARTER])
        self._view = TeeView(self._relay)
        self._log: PlainView | None = None
        self._stop_request: str | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._drive, name="driver", daemon=True).start()

    def __repr__(self) -> str:
        return f"Driver({self._order.run})"

    def news(self, seen: int, follower: str | None = None) -> DriverNews:
        """Long poll, see Relay.news. With `seen` -1: what there is, at once."""
        about = {"run": self._order.run, "experiment": self._order.name, "logdir": self._order.logdir}
        return {**about, **self._relay.news(seen, POLL_SECONDS, follower)}  # type: ignore[typeddict-item]

    def leave(self, follower: str) -> None:
        self._relay.leave(follower)

    def stop(self, reason: str) -> None:
        """Asks for what the first Ctrl-C asks a command."""
        self._stop_request = self._stop_request or reason

    def farewell(self, follower: str | None = None) -> None:
        """Of one who has heard of the end: it hears of the actor's death, when its name is free. Returns before it."""
        if follower is not None:
            self._relay.leave(follower)
        if self._ended.is_set():
            threading.Event().wait()

    def _drive(self) -> None:
        try:
            ending = self._run()
        except BaseException as error:  # there is nobody above who would tell anybody
            ending = Ending(1, None, f"the driver failed: {type(error).__name__}: {error}", traceback.format_exc())
        self._ended.set()
        self._relay.end(ending)
        ray.kill(self._me)  # `exit_actor` is for the thread of a call

    def _run(self) -> Ending:
        from raylingvo.actors.run import RunFailed, run
        from raylingvo.actors.within import Within

        try:
            result = run(
                self._order.take_place(),
                self._order.logdir,
                view=self._view,
                started=self._order.started,
                stop_request=lambda: self._stop_request,
                within=Within(run=self._order.run, cluster=self._order.cluster, begun=self._begin),
            )
        except RunFailed as failure:
            ending = Ending(1, failure.result, str(failure), failure.trace)
        except RequestError as error:
            ending = Ending(1 if isinstance(error, DiskError) else 2, None, str(error))
        else:
            ending = Ending(130 if result["status"] == "interrupted" else 0, result)
        try:
            self._write_last_words(ending)
        except OSError as error:  # that is not what the run ended by
            return ending._replace(message="; ".join(filter(None, (ending.message, str(error)))))
        return ending

    def _begin(self) -> None:
        """From now on there is a log. Before, the request may have been wrong, or the logdir somebody else's."""
        self._log = PlainView(cast(TextIO, LogFile(Path(self._order.logdir) / LOG)))
        self._view.add(self._log)
        self._relay.begin()

    def _write_last_words(self, ending: Ending) -> None:
        if self._log is not None:
            summary = format_summary(ending.result) if ending.result else ""
            for text in filter(None, (summary, ending.trace, ending.message)):
                self._log.event(text)


def start_driver(order: Order) -> Any:
    """Starts the driver of a run, on this machine, where its logdir and its directory are.

    Raises Ray's ValueError (`... is already taken ...`) if the run has one.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {
        "name": order.run,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": 0,  # the same command goes on with the run
        "max_concurrency": 32,  # each that waits for news takes a thread, for a second or so: then there are some
        "scheduling_strategy": here,
    }
    return ray.remote(DriverActor).options(**options).remote(order)
