"""Command lines as jobs of a Ray cluster elsewhere: how they get there, how they are followed, and how they end.

Everything goes through the port of the cluster's dashboard, which Ray's launcher forwards over SSH.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import requests
import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from raylingvo.actors import working_dir
from raylingvo.actors.cluster import has_token, show_token
from raylingvo.actors.git import GIT_SHA, git_sha
from raylingvo.errors import RequestError

_CONNECT_SECONDS = 10.0
_FORWARD_SECONDS = 120.0  # for a cloud's API to find the head, and for SSH
_AGENT_SECONDS = 120.0  # from a head's first answer until its agent takes jobs
_NO_AGENT = "No available agent to submit job"
_TRY_SECONDS = 0.2  # between two tries of a port that is to be forwarded
_SILENCE_SECONDS = 120.0  # of a cluster, after which a follower gives up
_POLL_SECONDS = 1.0
# Ray kills a job that does not end so soon when it is asked to (by default after 3 s): a checkpoint takes longer.
_ENVIRONMENT = {"RAY_JOB_STOP_WAIT_TIME_S": "300"}
_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # which Ray would prefer to what it is told


class Ended(NamedTuple):
    """A job that is over. `exit_status`: that of its command; 130 if it was stopped, 1 if a signal ended it."""

    status: str
    exit_status: int
    message: str = ""


class Silent(RuntimeError):
    """The cluster has not answered for a long time. The job may go on."""


class Place(NamedTuple):
    """A cluster, as the user has named it: by the file that `ray up` has started, or its dashboard's address."""

    cluster: Path | None
    address: str | None

    @property
    def option(self) -> str:
        return " ".join(self._option)

    @property
    def _option(self) -> tuple[str, str]:
        return ("--address", str(self.address)) if self.cluster is None else ("--cluster", str(self.cluster))

    def follow(self, job: str) -> str:
        """The command that follows a job there."""
        return shlex.join(["raylingvo", "submit", *self._option, "--follow", job])

    def ray_job(self, command: str) -> str:
        """`ray job COMMAND` for what is there, as it can be typed here."""
        if self.cluster is not None:
            # In a login shell on the head, which has the token and its mode from setup.sh.
            return f"ray exec {shlex.quote(str(self.cluster))} {shlex.quote(f'ray job {command}')}"
        unset = [f"{name}=" for name in _ADDRESSES if name in os.environ]
        shown = ["RAY_AUTH_MODE=token"] if os.environ.get("RAY_AUTH_MODE") == "token" else []
        address = shlex.quote(_url(str(self.address)))
        return " ".join([*unset, *shown, f"ray job {command} --address {address}"])


class Outcome(NamedTuple):
    """What has become of a request. `exit_status`: of the command that made it; None if it does not wait for the job.

    status: that of the job as it was last heard of; `unknown` if nothing has been heard for long.
    """

    job: str
    status: str
    exit_status: int | None
    message: str = ""


class _NotWritten(Exception):
    """What a job has written cannot be given on. `error`: why, by the one who was to take it."""

    def __init__(self, error: OSError):
        super().__init__(str(error))
        self.error = error


class _Log:
    """What a job has written, given on once."""

    def __init__(self, write: Callable[[str], Any]):
        self.heard = time.monotonic()  # when the cluster answered last
        self._write = write
        self._written = 0  # characters

    def take(self, text: str, start: int) -> None:
        """A piece of the log, that begins with its character number `start`."""
        if new := text[max(0, self._written - start) :]:
            try:
                self._write(new)
            except OSError as error:
                raise _NotWritten(error) from error
            self._written = start + len(text)


class Connection:
    """A cluster whose jobs can be asked for."""

    def __init__(self, client: JobSubmissionClient, place: Place):
        self._client = client
        self._place = place

    def submit(
        self,
        arguments: Sequence[str],
        directory: Path,
        excludes: Sequence[str],
        environment: Mapping[str, str],
        say: Callable[[str], Any],
    ) -> str:
        """Starts `python -m raylingvo ARGUMENTS` in a copy of `directory`, on the head; returns the job's id.

        say: is told if a head that has just started does not take jobs yet, which is waited for.
        Raises RequestError if the folder is too large, or the cluster refuses the job.
        """
        patterns = working_dir.excludes_for(directory, excludes)
        working_dir.check_size(directory, patterns)
        sha = git_sha(directory)  # of the .git that Ray leaves behind
        variables = {**_ENVIRONMENT, **({GIT_SHA: sha} if sha else {}), **environment}
        end, waits = time.monotonic() + _AGENT_SECONDS, False
        while True:
            try:
                return self._client.submit_job(
                    entrypoint=f"exec python -m raylingvo {shlex.join(arguments)}",
                    runtime_env={
                        "working_dir": str(directory),
                        "excludes": patterns,
                        "env_vars": variables,
                    },
                )
            except (RuntimeError, ValueError, OSError) as error:
                # A head that has just started, or is busy: it has waited 10 s for its agent (Ray 2.60). It says the
                # same if the agent has not answered for 300 s, and might have begun: by then we have given up.
                if _NO_AGENT not in str(error) or time.monotonic() > end:
                    raise RequestError(f"{self._place.option}: the job was refused: {_line(error)}") from error
            if not waits:
                say(f"the head does not take jobs yet; asking again, for {_AGENT_SECONDS:.0f} s")
            waits = True
            time.sleep(_POLL_SECONDS)

    def follow(self, job: str, write: Callable[[str], Any]) -> Ended:
        """Gives `write` what the job has written and writes, until it is over.

        Raises Silent, RequestError, or the OSError that `write` raises.
        """
        log = _Log(write)
        while True:
            try:
                if (info := asyncio.run(self._watch(job, log))).status.is_terminal():
                    return self._end(job, info, log)
            except _NotWritten as failed:
                raise failed.error from None
            except (aiohttp.ClientError, OSError, RuntimeError) as error:
                if time.monotonic() - log.heard > _SILENCE_SECONDS:
                    silence = f"no answer for {_SILENCE_SECONDS:.0f} s ({_line(error)})"
                    raise Silent(f"{self._place.option}: {silence}") from error
            time.sleep(_POLL_SECONDS)  # it has to be tried when it answers again

    def _end(self, job: str, info: Any, log: _Log) -> Ended:
        """The end of a job that is over, and the rest of its log; it may have gone with the machine."""
        ended = _ended(info)
        try:
            log.take(self._client.get_job_logs(job), 0)
        except (OSError, RuntimeError) as error:
            lost = f"the end of its log cannot be fetched ({_line(error)})"
            return ended._replace(message="; ".join(filter(None, (ended.message, lost))))
        return ended

    async def _watch(self, job: str, log: _Log) -> Any:
        """Reads along until the job is over, or the connection ends; what was last heard of the job.

        Whether it is over has to be asked for again and again. Ray (2.60) has no request that waits for it: the end of
        the log is told 3 to 5 s after that of its job, and over a connection that is dead never.
        """
        tail = asyncio.create_task(self._tail(job, log))
        try:
            while True:
                info = await asyncio.to_thread(self._info, job)
                log.heard = time.monotonic()
                if info.status.is_terminal() or tail.done():
                    break
                await asyncio.wait([tail], timeout=_POLL_SECONDS)
        finally:
            tail.cancel()
            result = (await asyncio.gather(tail, return_exceptions=True))[0]
        if isinstance(result, _NotWritten) or (isinstance(result, Exception) and not info.status.is_terminal()):
            raise result
        return info

    async def _tail(self, job: str, log: _Log) -> None:
        seen = 0  # each connection begins with the first line
        async for text in self._client.tail_job_logs(job):
            log.take(text, seen)
            seen += len(text)

    def _info(self, job: str) -> Any:
        try:
            return self._client.get_job_info(job)
        except RuntimeError as error:
            if str(error).startswith("Request failed with status code 404"):
                listed = f"there is no job {job}; `{self._place.ray_job('list')}` shows them"
                raise RequestError(f"{self._place.option}: {listed}") from error
            raise


def submit(
    place: Place,
    arguments: Sequence[str],
    directory: Path,
    excludes: Sequence[str],
    environment: Mapping[str, str],
    *,
    job: str | None,
    detach: bool,
    write: Callable[[str], Any],
    say: Callable[[str], Any],
) -> Outcome:
    """Starts a job as `Connection.submit` does, or takes up an earlier one, and follows it until it is over.

    job: the earlier one, instead of a new one. detach: do not follow it. write: is given what the job writes.
    say: is told that the job is followed, and what is waited for before.
    Ctrl-C, SIGTERM and SIGHUP leave the job to the cluster.
    Raises RequestError as `connected` and `Connection` do, and BrokenPipeError if `write` does: nobody reads any more.
    """
    with _ended_in_order(), connected(place) as connection:
        job = job or connection.submit(arguments, directory, excludes, environment, say)
        if detach:
            return Outcome(job, "running", None)
        say(f"job {job}; Ctrl-C leaves it to the cluster")
        again = f"to follow it: {place.follow(job)}"
        try:
            ended = connection.follow(job, write)
        except Silent as silence:
            return Outcome(job, "unknown", 1, f"{silence}; the job may go on; {again}")
        except KeyboardInterrupt:
            return Outcome(job, "running", 130, f"the job goes on without you; {again}")
        except BrokenPipeError:
            raise
        except OSError as error:
            full = f"what the job writes cannot be written here ({error.strerror or _line(error)})"
            return Outcome(job, "running", 1, f"{full}; the job goes on; {again}")
        return Outcome(job, *ended)


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end this command as Ctrl-C does: a forwarded port is not left open."""
    # What is ignored stays so, as SIGHUP after `nohup`.
    watched = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, _interrupt) for number in watched}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def connected(place: Place) -> Iterator[Connection]:
    """A way to the cluster. Raises RequestError if there is none, or Ray's token is wanted and is not there."""
    if (place.cluster is None) == (place.address is None):
        raise RequestError("submit: give one of --cluster FILE and --address URL")
    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.ExitStack() as opened:
        if place.cluster is not None:
            check_cluster_file(place.cluster)
            url = opened.enter_context(_forwarded(place.cluster))
        else:
            url = _url(str(place.address))
        yield Connection(_client(url, place.option), place)


def check_cluster_file(path: Path) -> None:
    """Raises RequestError if `ray up` could not read this file."""
    import jsonschema
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    where = f"--cluster {path}"
    try:
        config = yaml.safe_load(path.read_text())
    except OSError as error:
        raise RequestError(f"{where}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{where}: is not YAML ({_line(error)})") from error
    if isinstance(config, dict) and str(config.get("apiVersion", "")).startswith("ray.io/"):
        raise RequestError(
            f"{where}: is for Kubernetes; forward the port of its head, kubectl port-forward "
            "service/NAME-head-svc 8265, and give --address http://127.0.0.1:8265"
        )
    if not isinstance(config, dict) or not isinstance(config.get("provider"), dict):
        raise RequestError(f"{where}: is no cluster file of Ray: it has no provider")
    try:
        validate_config(fillout_defaults(config))
    except jsonschema.ValidationError as error:
        raise RequestError(f"{where}: {error.json_path.removeprefix('$.')}: {_line(error.message)}") from error
    except Exception as error:  # whatever a provider thinks of a file that it cannot use
        raise RequestError(f"{where}: is no cluster file of Ray ({type(error).__name__}: {_line(error)})") from error


@contextlib.contextmanager
def _forwarded(cluster: Path) -> Iterator[str]:
    """The URL here at which the dashboard of a cluster answers meanwhile."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "ray.scripts.scripts", "dashboard", str(cluster), "--port", str(port)]
    with tempfile.TemporaryFile("w+") as said:
        forwarder = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait_for(port, forwarder, said, cluster)
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(forwarder.pid, signal.SIGTERM)
            forwarder.wait()


def _wait_for(port: int, forwarder: subprocess.Popen[bytes], said: Any, cluster: Path) -> None:
    end = time.monotonic() + _FORWARD_SECONDS
    while time.monotonic() < end:
        try:
            forwarder.wait(_TRY_SECONDS)
        except subprocess.TimeoutExpired:
            if _answers("127.0.0.1", port):  # neither Ray's launcher nor ssh says when: it has to be tried
                return
            continue
        said.seek(0)
        lines = [line.strip() for line in said.read().splitlines() if line.strip()]
        raise RequestError(
            f"--cluster {cluster}: no way to its head ({lines[-1] if lines else 'Ray says nothing'}); "
            f"to start it: ray up {cluster}"
        )
    raise RequestError(f"--cluster {cluster}: no way to its head within {_FORWARD_SECONDS:.0f} s")


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _url(address: str) -> str:
    url = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(url)
        right = parts.scheme == "https" or (parts.scheme == "http" and parts.port is not None)
        right = right and bool(parts.hostname)
    except ValueError:
        right = False
    if not right:
        raise RequestError(f"--address {address}: must be the URL of a dashboard, such as http://127.0.0.1:8265")
    return url.rstrip("/")


def _client(url: str, where: str) -> JobSubmissionClient:
    host = urlsplit(url).hostname or ""
    if host in ("127.0.0.1", "localhost", "::1"):  # a strange one anybody may overhear: only if the user says so
        show_token()
    kept = {name: os.environ.pop(name) for name in _ADDRESSES if name in os.environ}
    try:
        _check_silence(url, where)
        client = JobSubmissionClient(url)
        client.list_jobs()  # without a token even the version is told
        return client
    except AuthenticationError as error:
        if os.environ.get("RAY_AUTH_MODE") == "token" and has_token():
            fix = "yours is another one (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token)"
        else:
            fix = "put it into ~/.ray/auth_token, and set RAY_AUTH_MODE=token to show it to this address"
        raise RequestError(f"{where}: the cluster wants Ray's token; {fix}") from error
    except (RuntimeError, ValueError, OSError, requests.RequestException) as error:
        raise RequestError(f"{where}: no dashboard of Ray there ({_line(error)})") from error
    finally:
        os.environ.update(kept)


def _check_silence(url: str, where: str) -> None:
    """Raises RequestError if nobody answers: Ray's client would wait as long as the system does."""
    try:
        requests.get(f"{url}/api/version", timeout=_CONNECT_SECONDS)
    except requests.RequestException as error:
        raise RequestError(f"{where}: nobody answers there ({_reason(error)})") from error


def _ended(info: Any) -> Ended:
    if info.status == JobStatus.SUCCEEDED:
        return Ended("finished", 0)
    if info.status == JobStatus.STOPPED:
        return Ended("interrupted", 130, "the job was stopped")
    status = info.driver_exit_code if info.driver_exit_code in (1, 2, 130) else 1
    if info.driver_exit_code is None:
        return Ended("failed", status, f"the job could not start: {_line(info.message or info.error_type or '')}")
    if info.driver_exit_code == status:
        return Ended("interrupted" if status == 130 else "failed", status)
    return Ended("failed", status, f"the job's process ended with {info.driver_exit_code}")


def _line(error: object) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:300]


def _reason(error: BaseException) -> str:
    """What the system says, without what libraries have wrapped around it."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return _line(getattr(error, "strerror", None) or error)
