"""Runs whose drivers are actors in a cluster: how commands start them, find them, follow them and stop them."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from raylingvo.actors.calls import POLL_SECONDS, REPLY_SECONDS, fetch
from raylingvo.actors.cluster import joined
from raylingvo.actors.driver import NAMESPACE, STARTER, DriverNews, Ending, Order, start_driver
from raylingvo.actors.logdir import Logdir
from raylingvo.errors import RequestError
from raylingvo.experiment import Experiment
from raylingvo.monitor import cluster_view, runs
from raylingvo.monitor.live import View

_GLANCE_SECONDS = 10.0  # until then a driver has answered what it can answer at once
_EXIT_STATUS = {"finished": 0, "interrupted": 130}  # of the command; 1 of a run with any other status


def start(experiment: Experiment, logdir: Path, *, address: str | None, started: float) -> dict[str, Any]:
    """Starts a run whose driver stays in the cluster: {"run", "experiment", "status", "logdir", "dashboard"}.

    Returns when the request has proved right; the result of a run that is finished already.
    address: of the cluster; None: that of this machine. The others: as for `run`.
    Raises RequestError as `run` does, and if there is no cluster.
    """
    with contextlib.closing(Logdir(logdir, experiment)) as home:
        run, path = home.info["id"], home.path
        if home.info["status"] == "finished":
            return home.info["result"]
    with joined(address, "leave out --detach") as cluster:
        driver = _new_driver(Order.of_this_process(run, experiment, path, started, cluster))
        try:
            _wait_until_begun(driver)
        except BaseException:
            ray.kill(driver)  # who gives up waiting does not want a run that nobody has heard of
            raise
    return {
        "run": run,
        "experiment": experiment.name,
        "status": "running",
        "logdir": str(path),
        "dashboard": cluster.dashboard,
    }


def _new_driver(order: Order) -> Any:
    while True:
        try:
            return start_driver(order)
        except ValueError as error:
            if "already taken" not in str(error):  # Ray has a class for it, but not for long
                raise
        if (other := _get(order.run)) is not None:
            with contextlib.suppress(RayActorError):  # that run was over, and its driver about to end
                fetch(other.farewell.remote())
                raise RequestError(f"--logdir {order.logdir}: another raylingvo process is running in it")


def _wait_until_begun(driver: Any) -> None:
    seen = -1
    while True:
        try:
            news: DriverNews = fetch(driver.news.remote(seen, STARTER), POLL_SECONDS + REPLY_SECONDS)
        except RayActorError as error:
            raise RequestError(f"the driver did not start: {str(error).strip().splitlines()[0]}") from error
        if news["begun"]:
            fetch(driver.leave.remote(STARTER))
            return
        if (ending := news["ended"]) is not None:
            with contextlib.suppress(RayActorError):
                fetch(driver.farewell.remote(STARTER))
            raise RuntimeError(ending.trace) if ending.trace else RequestError(ending.message)
        seen = news["number"]


def list_running(address: str | None) -> list[dict[str, Any]]:
    """A row, see cluster_view.row, for each run in the cluster."""
    with joined(address):
        drivers = {run: driver for run in driver_ids() if (driver := _get(run)) is not None}
        asked = {run: driver.news.remote(-1) for run, driver in drivers.items()}
        if asked:
            ray.wait(list(asked.values()), num_returns=len(asked), timeout=_GLANCE_SECONDS)
        rows = []
        for run, ref in asked.items():
            try:
                rows.append(cluster_view.row(run, fetch(ref, timeout=0)))
            except GetTimeoutError:
                rows.append(cluster_view.row(run, None))
            except RayActorError:  # it has ended meanwhile
                continue
        return rows


def status(name: str, address: str | None) -> dict[str, Any]:
    """Of a run in the cluster cluster_view.described; of another, by its logdir, a result as `run --json` prints it.

    Raises RequestError if there is no such run, see `open_run`.
    """
    with open_run(name, address) as found:
        return found.status()


class RunInSight:
    """A run as others see it: through its driver, if that is in the cluster, else through its logdir."""

    def __init__(self, driver: Any, home: runs.Run | None):
        self._driver = driver
        self._home = home

    def status(self) -> dict[str, Any]:
        if self._driver is not None:
            return cluster_view.described(self._glance())
        assert self._home is not None
        return _result(self._home)

    def attach(self, view: View) -> Ending:
        """Shows the run until it ends: from its beginning, as far as the driver remembers."""
        return self._ending() if self._driver is None else self._follow(view, 0)

    def stop(self, reason: str, view: View) -> Ending:
        """Asks for what Ctrl-C asks of a command, and shows what follows until the run has ended."""
        if self._driver is None:
            return self._ending()
        seen = self._glance()["number"]
        self._answer(self._driver.stop.remote(reason), REPLY_SECONDS)
        return self._follow(view, seen)

    def _answer(self, ref: Any, timeout: float) -> Any:
        try:
            return fetch(ref, timeout)
        except GetTimeoutError as error:
            raise RequestError(f"the driver of the run has not answered for {timeout:.0f} s") from error

    def _glance(self) -> DriverNews:
        return self._answer(self._driver.news.remote(-1), _GLANCE_SECONDS)

    def _follow(self, view: View, seen: int) -> Ending:
        follower = uuid.uuid4().hex
        logdir = None
        try:
            while True:
                news: DriverNews = self._answer(self._driver.news.remote(seen, follower), POLL_SECONDS + REPLY_SECONDS)
                _show(news, view, first=logdir is None)
                seen, logdir = news["number"], news["logdir"]
                if news["ended"] is not None:
                    break
        except RayActorError as error:
            if logdir is None:
                return Ending(1, None, f"the driver is gone: {str(error).strip().splitlines()[0]}")
            return _ending_of(runs.load_run(logdir))
        except BaseException:
            with contextlib.suppress(RayError):  # it may be what does not answer
                fetch(self._driver.leave.remote(follower), _GLANCE_SECONDS)
            raise
        with contextlib.suppress(RayActorError):
            fetch(self._driver.farewell.remote(follower))  # when this command ends, the run has left the cluster
        return news["ended"]

    def _elsewhere(self) -> str:
        assert self._home is not None
        return f"run {self._home.id} is not in this cluster: it was started without --detach, or in another one"

    def _ending(self) -> Ending:
        assert self._home is not None
        if self._home.info["status"] == "running":
            raise RequestError(self._elsewhere())
        return _ending_of(self._home)


@contextlib.contextmanager
def open_run(name: str, address: str | None) -> Iterator[RunInSight]:
    """The run with the id `name`, or the only one whose id begins so, in the cluster; or the run in that logdir.

    A run in a logdir needs no cluster if it is over. Raises RequestError if there is no such run.
    """
    home = home_of(name)
    with contextlib.ExitStack() as opened:
        driver = None
        if home is None or home.info["status"] == "running":
            try:
                opened.enter_context(joined(address))
            except RequestError:
                if home is None or address is not None:
                    raise
            else:
                driver = _get(home.id) if home else _find(name)
        yield RunInSight(driver, home)


def home_of(name: str) -> runs.Run | None:
    """The logdir that `name` is; None if it is the id of a run, or how that begins."""
    return runs.load_run(name) if os.sep in name or Path(name).is_dir() else None


def _show(news: DriverNews, view: View, *, first: bool) -> None:
    if first and news["status"]:
        view.update(news["status"])  # it introduces the run
    for event in news["events"]:
        view.event(event)
    if news["status"]:
        view.update(news["status"])


def _ending_of(home: runs.Run) -> Ending:
    """Of a run without a driver."""
    if home.info["status"] == "running":  # it cannot be
        home = dataclasses.replace(home, info={**home.info, "status": "died"})
    status, reason = home.info["status"], home.info.get("stop_reason")
    if status == "died":
        reason = f"run {home.id} died; the same command goes on with it"
    exit_status = _EXIT_STATUS.get(status, 1)
    return Ending(exit_status, _result(home), (reason or "") if exit_status == 1 else "")


def _result(home: runs.Run) -> dict[str, Any]:
    if result := home.info.get("result"):
        return result
    (row,) = runs.list_rows([home])
    train = {"step": row["step"], **row["train"]} if row["train"] else {}
    return {**row, "step": row["step"] or 0, "train": train, "stop_reason": home.info.get("stop_reason")}


def driver_ids() -> list[str]:
    named = ray.util.list_named_actors(all_namespaces=True)
    return sorted(actor["name"] for actor in named if actor["namespace"] == NAMESPACE)  # type: ignore[index]


def _get(run: str) -> Any | None:
    try:
        return ray.get_actor(run, namespace=NAMESPACE)
    except ValueError:  # there is none
        return None


def _find(name: str) -> Any:
    run = chosen(name, driver_ids())
    if (driver := _get(run)) is None:
        raise RequestError(f"run {run} has just ended; give its logdir")
    return driver


def chosen(name: str, ids: Sequence[str]) -> str:
    """The only one of the ids that is `name`, or begins so. Raises RequestError if there is none."""
    found = [name] if name in ids else [run for run in ids if run.startswith(name)]
    if len(found) > 1:
        raise RequestError(f"RUN {name!r} may be {' or '.join(found)}")
    if found:
        return found[0]
    if not ids:
        raise RequestError(f"no run {name!r}: there are no runs in this cluster; of one that is over, give the logdir")
    beginnings = {run[: len(name)]: run for run in ids}
    closest = [beginnings[found] for found in difflib.get_close_matches(name, beginnings, n=3)]
    hint = f"closest: {', '.join(closest)}" if closest else "`raylingvo status` shows those in this cluster"
    raise RequestError(f"no run {name!r}; {hint}")
