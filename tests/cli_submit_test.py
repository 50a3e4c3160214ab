"""`raylingvo submit`: what is refused, what goes along, how a job is followed and how it ends; and clusters/run.py."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import types
import zipfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, command_of
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobStatus

import raylingvo
from raylingvo.actors import submit as jobs
from raylingvo.actors import working_dir
from raylingvo.cli_submit import joining
from raylingvo.errors import RequestError

ROOT = Path(raylingvo.__file__).parents[1]
SECONDS = 300
RUN = ("--", "run", "image.digits.LeNet5", "--logdir", "/runs/a")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """command(*arguments): runs `raylingvo submit ARGUMENTS` in this process."""
    return command_of(monkeypatch, capsys, "submit")


@pytest.fixture
def silent() -> str:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


# --- command lines for the cluster that they are on ---


@pytest.mark.parametrize(
    ("arguments", "joined"),
    [
        ("run X --logdir D", "run --address auto X --logdir D"),
        ("run X --address ray:1", "run X --address ray:1"),
        ("run X --address=ray:1", "run X --address=ray:1"),
        ("run X --detach", "run --address auto X --detach"),
        ("tune sweep X", "tune sweep --address auto X"),
        ("tune sweep --address local X", "tune sweep --address local X"),
        ("status", "status"),  # those of the cluster here, anyway
        ("eval --logdir D", "eval --logdir D"),  # without Ray
        ("list run", "list run"),
        ("", ""),
    ],
)
def test_a_command_that_would_start_its_own_ray_joins_the_cluster(arguments: str, joined: str) -> None:
    assert joining(arguments.split()) == joined.split()
    assert joining(joined.split()) == joined.split()


def test_the_script_that_ray_submit_ships_takes_the_arguments_of_the_command_line(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(tmp_path)}
    environment.pop("RAY_ADDRESS", None)

    def script(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "clusters" / "run.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment, cwd=tmp_path)

    listed = script("list", "digits", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [found["name"] for found in json.loads(listed.stdout)["experiments"]] == ["image.digits.LeNet5"]
    unknown = script("run", "image.digits.Nothing", "--logdir", str(tmp_path / "run"))
    assert (unknown.returncode, unknown.stdout, unknown.stderr.count("\n")) == (2, "", 1)
    assert "no experiment 'image.digits.Nothing'" in unknown.stderr


# --- requests that are refused ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--address", "http://127.0.0.1:1"), "submit: give -- and a command, such as -- run EXPERIMENT --logdir DIR"),
        (RUN, "submit: give one of --cluster FILE and --address URL"),
        (("--cluster", "x", "--address", "y", *RUN), "submit: give one of --cluster FILE and --address URL"),
        (("--follow", "job", "--detach"), "submit: one of --follow and --detach, not both"),
        (("--address", "y", "--", "run", "X", "--logdir", "runs/a"), "--logdir runs/a: must be absolute"),
        (("--address", "y", "--", "run", "X", "--logdir=a"), "--logdir a: must be absolute"),
        (("--address", "y", "--working-dir", "nowhere", *RUN), "--working-dir nowhere: there is no such folder"),
        (("--address", "y", "--env", "NAME", *RUN), "--env NAME: must be NAME=VALUE"),
        (("--address", "somewhere", *RUN), "--address somewhere: must be the URL of a dashboard, such as http://127"),
        (("--address", "http://a:b", *RUN), "--address http://a:b: must be the URL of a dashboard"),
        (("--address", "http://[::1", *RUN), "--address http://[::1: must be the URL of a dashboard"),
        (("--address", "ray://a:1", *RUN), "--address ray://a:1: must be the URL of a dashboard"),
        (("--cluster", "nothing.yaml", *RUN), "--cluster nothing.yaml: cannot be read (No such file or directory)"),
    ],
)
def test_a_wrong_request_is_one_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = command(*arguments)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith(f"raylingvo: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not YAML"),
        ("- 1", "is no cluster file of Ray: it has no provider"),
        ("provider: {type: cloud9}\ncluster_name: a", "is no cluster file of Ray (NotImplementedError: "),
        ("provider: {type: local}\ncluster_name: a\nnodes: 3", "$: Additional properties are not allowed ('nodes' was"),
        ("provider: {type: local}\ncluster_name: a\nmax_workers: -1", "max_workers: -1 is less than the minimum of 0"),
        ("apiVersion: ray.io/v1\nkind: RayCluster", "is for Kubernetes; forward the port of its head, kubectl "),
    ],
)
def test_a_wrong_cluster_file_is_one_line(command: Command, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    ended = command("--cluster", path, *RUN)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith(f"raylingvo: --cluster {path}: {message}")


@pytest.mark.parametrize("path", sorted((ROOT / "clusters").glob("*.yaml")), ids=lambda path: path.name)
def test_our_own_cluster_files_are_taken(path: Path) -> None:
    jobs.check_cluster_file(path)


def test_an_address_where_nobody_answers_is_refused_at_once(command: Command, silent: str) -> None:
    ended = command("--address", silent, *RUN)
    assert ended == (2, "", f"raylingvo: --address {silent}: nobody answers there (Connection refused)\n")


def test_a_server_that_is_not_rays_is_refused(command: Command, tmp_path: Path) -> None:
    server = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with subprocess.Popen(server, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        (port,) = re.findall(r"port (\d+)", process.stdout.readline())
        ended = command("--address", f"http://127.0.0.1:{port}", *RUN)
        process.kill()
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith(f"raylingvo: --address http://127.0.0.1:{port}: no dashboard of Ray there (")


# --- the folder that goes along ---


def write(folder: Path, *names: str, size: int = 1) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


def packed(folder: Path, *given: str) -> set[str]:
    """The files that Ray packs."""
    target = folder.parent / "package.zip"
    patterns = working_dir.excludes_for(folder, given)
    create_package(str(folder), target, include_gitignore=True, excludes=[".git", ".venv", "__pycache__", *patterns])
    with zipfile.ZipFile(target) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_code_goes_along_and_data_runs_and_environments_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project"
    monkeypatch.setenv("RAYLINGVO_DATA", str(folder / "corpora"))
    goes = {"my_model.py", "package/runs/__init__.py", "package/checkpoints.py", "notes[1]/plan.txt", ".gitignore"}
    stays = (
        ".git/objects/1",
        ".venv/bin/python",
        "runs/a/train/checkpoints/1/weights",
        "sweeps/b/best.yaml",
        "corpora/train.parquet",
        "old[1]/run.json",
        "old[1]/train/metrics.jsonl",
        "search/sweep.json",
        "kept/train/checkpoints/7/weights",
        "package/__pycache__/a.pyc",
        "my.egg-info/PKG-INFO",
        "ignored/by_git.txt",
        "big.bin",
        *(f"{secrets}/token" for secrets in (".ssh", ".ray", ".config", ".aws", ".gnupg", ".kube")),
        ".env",
        ".netrc",
        "service/.env",
    )
    write(folder, *goes, *stays)
    (folder / ".gitignore").write_text("ignored/\n")
    assert packed(folder, "*.bin") == goes


def test_what_is_left_behind_by_default_can_be_taken_along(tmp_path: Path) -> None:
    write(tmp_path / "project", ".env", ".netrc")
    assert packed(tmp_path / "project", "!.env") == {".env"}


def test_a_folder_that_is_itself_a_logdir_may_go_along(tmp_path: Path) -> None:
    write(tmp_path / "run", "run.json", "mine.py")
    assert packed(tmp_path / "run") == {"run.json", "mine.py"}


def test_too_large_a_folder_is_refused_with_its_largest_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert working_dir.MAX_BYTES == 100 << 20
    monkeypatch.setattr(working_dir, "MAX_BYTES", 3 << 20)
    for number in range(1, 5):
        write(tmp_path, f"part-{number}", size=number << 18)
    working_dir.check_size(tmp_path, ())
    write(tmp_path, "sub/large", size=1 << 20)
    with pytest.raises(RequestError) as refused:
        working_dir.check_size(tmp_path, ())
    assert str(refused.value) == (
        f"--working-dir {tmp_path}: the job would take along 3.5 MiB, and Ray takes less than 3.0 MiB; the largest: "
        "part-4 (1.0 MiB), sub/large (1.0 MiB), part-3 (0.8 MiB); "
        "leave some out with --exclude PATTERN, .gitignore or .rayignore"
    )
    working_dir.check_size(tmp_path, ("part-4", "part-3"))


# --- following a job ---


LOG = "one\ntwo\nthree\nfour\nfive\nsix\n"


class Client:
    """As Ray's: a job that is over when the last of the connections, each of which breaks, has given its pieces."""

    def __init__(
        self, connections: Sequence[Sequence[str | Exception]], info: Any, logs: str | Exception = LOG
    ) -> None:
        self._connections = list(connections)
        self._info = info
        self._logs = logs

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for piece in self._connections.pop(0):
            await asyncio.sleep(0)
            if isinstance(piece, Exception):
                raise piece
            yield piece
        if not self._connections:
            await asyncio.sleep(SECONDS)  # Ray takes its time to close it

    def get_job_info(self, job: str) -> Any:
        return job_info(JobStatus.RUNNING) if self._connections else self._info

    def get_job_logs(self, job: str) -> str:
        if isinstance(self._logs, Exception):
            raise self._logs
        return self._logs


def job_info(status: JobStatus, code: int | None = None, message: str = "") -> Any:
    return types.SimpleNamespace(status=status, driver_exit_code=code, message=message, error_type=None)


HERE = jobs.Place(None, "http://a:1")


def following(client: Any, write: Callable[[str], Any]) -> jobs.Ended:
    return jobs.Connection(client, HERE).follow("job", write)


def test_logs_are_written_once_whatever_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.0)
    connections = (
        ["one\n", "two\nthr", OSError("reset")],
        [OSError("refused")],
        ["one\ntwo\n", "three\nfour\n", RuntimeError("WebSocket connection closed unexpectedly")],
        ["one\ntwo\nthree\nfour\nfi"],
    )
    written = io.StringIO()
    assert following(Client(connections, job_info(JobStatus.SUCCEEDED, 0)), written.write) == ("finished", 0, "")
    assert written.getvalue() == LOG


class Never(Client):
    """Of a job that writes at once, and does not end by itself."""

    def __init__(self) -> None:
        super().__init__([[LOG]], job_info(JobStatus.RUNNING))


@pytest.mark.parametrize(
    "client",
    [Never(), Client([], job_info(JobStatus.SUCCEEDED, 0)), Client([[LOG]], job_info(JobStatus.SUCCEEDED, 0))],
    ids=["while it runs", "when it is over", "at its end"],
)
@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.ENOSPC, "No space left on device")])
def test_what_cannot_be_written_is_no_silence_of_the_cluster(client: Client, error: OSError) -> None:
    def write(text: str) -> None:
        raise error

    with pytest.raises(OSError) as raised:
        following(copy.deepcopy(client), write)
    assert raised.value is error


@pytest.mark.parametrize("error", [RuntimeError("Request failed with status code 500: no\nagent."), OSError("reset")])
def test_a_job_that_is_over_has_its_end_without_its_log_too(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.0)
    written = io.StringIO()
    said = f"the end of its log cannot be fetched ({' '.join(str(error).split())})"
    failed = Client([["one\n", OSError("reset")], []], job_info(JobStatus.FAILED, 2), error)
    assert following(failed, written.write) == ("failed", 2, said)
    assert written.getvalue() == "one\n"
    killed = Client([], job_info(JobStatus.FAILED, -9), error)
    assert following(killed, print) == ("failed", 1, f"the job's process ended with -9; {said}")


def test_a_cluster_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(jobs, "_SILENCE_SECONDS", 0.0)

    class Gone:
        def get_job_info(self, job: str) -> Any:
            raise ConnectionError("refused")

    gone: Any = Gone()
    with pytest.raises(jobs.Silent, match=r"^--address http://a:1: no answer for 0 s \(refused\)$"):
        following(gone, print)


class Refusing:
    """Every question is answered so."""

    def __init__(self, answer: str) -> None:
        self._answer = answer

    def get_job_info(self, job: str) -> Any:
        raise RuntimeError(self._answer)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        return
        yield


def test_only_a_job_that_is_not_there_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    shows = "there is no job job; `ray job list --address http://a:1` shows them"
    with pytest.raises(RequestError, match=f"^{re.escape(f'--address http://a:1: {shows}')}$"):
        following(Refusing("Request failed with status code 404: Job job does not exist."), print)
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(jobs, "_SILENCE_SECONDS", 0.0)
    with pytest.raises(jobs.Silent, match="raysubmit_a404b"):
        following(Refusing("Request failed with status code 500: no agent of raysubmit_a404b."), print)


@pytest.mark.parametrize(
    ("place", "environment", "typed"),
    [
        (jobs.Place(None, "a:1"), {}, "ray job stop J --address http://a:1"),
        (HERE, {"RAY_AUTH_MODE": "token"}, "RAY_AUTH_MODE=token ray job stop J --address http://a:1"),
        # It would come before what --address says.
        (HERE, {"RAY_ADDRESS": "b:6379"}, "RAY_ADDRESS= ray job stop J --address http://a:1"),
        (jobs.Place(Path("my clusters/c.yaml"), None), {}, "ray exec 'my clusters/c.yaml' 'ray job stop J'"),
    ],
)
def test_a_job_is_stopped_from_here(
    monkeypatch: pytest.MonkeyPatch, place: jobs.Place, environment: dict[str, str], typed: str
) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert place.ray_job("stop J") == typed
    assert shlex.split(place.follow("J"))[2:4] == [
        "--address" if place.address else "--cluster",
        str(place[0] or place[1]),
    ]


class Taking:
    """Takes a job, and keeps what has been sent."""

    def submit_job(self, **job: Any) -> str:
        self.job = job
        return "job-1"


class Starting(Taking):
    """A head whose agent is not there yet for the first few jobs."""

    def __init__(self, refusals: int):
        self.left = refusals

    def submit_job(self, **job: Any) -> str:
        self.left -= 1
        if self.left >= 0:
            raise RuntimeError("status code 500: No available agent to submit job, please try again later.")
        return super().submit_job(**job)


def test_a_head_that_is_still_starting_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def submitted(client: Any) -> str:
        return jobs.Connection(client, HERE).submit(["list"], tmp_path, (), {}, said.append)

    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.0)
    assert submitted(Starting(2)) == "job-1"
    assert said == ["the head does not take jobs yet; asking again, for 120 s"]
    monkeypatch.setattr(jobs, "_AGENT_SECONDS", -1.0)
    with pytest.raises(RequestError, match=r"the job was refused: .*No available agent"):
        submitted(Starting(1))


def test_the_job_is_told_the_commit_that_the_folder_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taking: Any = Taking()

    def variables(**environment: str) -> dict[str, str]:
        jobs.Connection(taking, HERE).submit(["list"], tmp_path, (), environment, pytest.fail)
        return taking.job["runtime_env"]["env_vars"]

    waits = {"RAY_JOB_STOP_WAIT_TIME_S": "300"}
    assert variables(A="b") == {**waits, "A": "b"}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    sha = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert variables() == {**waits, "RAYLINGVO_GIT_SHA": sha}
    (tmp_path / "mine.py").touch()
    assert variables() == {**waits, "RAYLINGVO_GIT_SHA": f"{sha}+"}
    assert variables(RAYLINGVO_GIT_SHA="mine") == {**waits, "RAYLINGVO_GIT_SHA": "mine"}


def test_a_job_is_sent_without_what_computes(tmp_path: Path) -> None:
    code = (
        "import sys, types\n"
        "from pathlib import Path\n"
        "from raylingvo.actors import submit\n"
        "taking = types.SimpleNamespace(submit_job=lambda **job: 'job-1')\n"
        "submit.Connection(taking, submit.Place(None, 'a:1')).submit(['list'], Path(sys.argv[1]), (), {}, print)\n"
        "print('loaded:', *({'jax', 'flax', 'optax', 'grain', 'tensorflow'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    assert done.stdout == "loaded:\n"


@pytest.mark.parametrize(
    ("status", "code", "ended"),
    [
        (JobStatus.SUCCEEDED, 0, ("finished", 0, "")),
        (JobStatus.FAILED, 1, ("failed", 1, "")),
        (JobStatus.FAILED, 2, ("failed", 2, "")),
        (JobStatus.FAILED, 130, ("interrupted", 130, "")),
        (JobStatus.FAILED, -9, ("failed", 1, "the job's process ended with -9")),
        (JobStatus.FAILED, 127, ("failed", 1, "the job's process ended with 127")),
        (JobStatus.FAILED, None, ("failed", 1, "the job could not start: no such package")),
        (JobStatus.STOPPED, None, ("interrupted", 130, "the job was stopped")),
    ],
)
def test_a_job_ends_as_its_command_does(status: JobStatus, code: int | None, ended: tuple[str, int, str]) -> None:
    assert jobs._ended(job_info(status, code, "no such\n package")) == ended


class Cluster:
    """A cluster that takes every job."""

    def __init__(self, end: jobs.Ended | BaseException) -> None:
        self.end = end
        self.taken: list[tuple[Any, ...]] = []

    def submit(self, *job: Any) -> str:
        self.taken.append(job[:-1])  # without whom to tell
        return "job-1"

    def follow(self, job: str, write: Callable[[str], Any]) -> jobs.Ended:
        write("a line\n")
        if isinstance(self.end, BaseException):
            raise self.end
        return self.end


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[[jobs.Ended | BaseException], Cluster]:
    """cluster(end): the one that the command is connected to; its jobs end so."""

    def make(end: jobs.Ended | BaseException) -> Cluster:
        made = Cluster(end)
        monkeypatch.setattr(jobs, "connected", lambda place: contextlib.nullcontext(made))
        return made

    return make


ANNOUNCED = "raylingvo: job job-1; Ctrl-C leaves it to the cluster\n"
AGAIN = "to follow it: raylingvo submit --address A --follow job-1\n"


def test_the_job_gets_the_command_line_the_folder_and_the_variables(
    command: Command, tmp_path: Path, cluster: Callable[..., Cluster]
) -> None:
    made = cluster(jobs.Ended("finished", 0))
    options = ("--working-dir", tmp_path, "--exclude", "*.bin", "--env", "A=b=c")
    assert command("--address", "A", *options, *RUN) == (0, "a line\n", ANNOUNCED)
    arguments = ["run", "--address", "auto", *RUN[2:]]
    assert made.taken == [(arguments, tmp_path.resolve(), ["*.bin"], {"A": "b=c"})]


@pytest.mark.parametrize(
    ("end", "status", "said", "answer"),
    [
        (jobs.Ended("failed", 2), 2, "", {"status": "failed", "exit_status": 2}),
        (
            jobs.Ended("interrupted", 130, "the job was stopped"),
            130,
            "raylingvo: the job was stopped\n",
            {"status": "interrupted", "exit_status": 130},
        ),
        (
            KeyboardInterrupt(),
            130,
            f"raylingvo: the job goes on without you; {AGAIN}",
            {"status": "running", "exit_status": 130},
        ),
        (
            jobs.Silent("--address A: no answer for 120 s (refused)"),
            1,
            f"raylingvo: --address A: no answer for 120 s (refused); the job may go on; {AGAIN}",
            {"status": "unknown", "exit_status": 1},
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "raylingvo: what the job writes cannot be written here (No space left on device); the job goes on; "
            f"{AGAIN}",
            {"status": "running", "exit_status": 1},
        ),
    ],
)
def test_submit_ends_as_the_job_does(
    command: Command,
    cluster: Callable[..., Cluster],
    end: jobs.Ended | BaseException,
    status: int,
    said: str,
    answer: dict[str, Any],
) -> None:
    cluster(end)
    assert command("--address", "A", *RUN) == (status, "a line\n", ANNOUNCED + said)
    ended = command("--address", "A", "--json", *RUN)
    assert (ended.status, ended.err) == (status, f"{ANNOUNCED}a line\n{said}")
    assert ended.json == {"job": "job-1", **answer}


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path, cluster: Callable[..., Cluster]) -> None:
    """As with `| head -1`."""
    script = (
        "import contextlib, sys\nfrom raylingvo import cli\nfrom raylingvo.actors import submit\n"
        "class Endless:\n"
        "    def submit(self, *job): return 'job-1'\n"
        "    def follow(self, job, write):\n"
        "        while True: write('a line\\n')\n"
        "submit.connected = lambda place: contextlib.nullcontext(Endless())\n"
        f"sys.argv[1:] = {['submit', '--address', 'A', *RUN]}\n"
        "cli.main()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=-1, stderr=-1, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "a line\n"
        process.stdout.close()
        assert process.wait(SECONDS) == 0
        assert process.stderr.read() == ANNOUNCED
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", script], stdout=full, stderr=-1, text=True, cwd=tmp_path, timeout=SECONDS
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"{ANNOUNCED}raylingvo: what the job writes cannot be written here (No space left")
    assert ended.stderr.count("\n") == 2


def test_detached_it_says_how_to_follow(
    command: Command, cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    made = cluster(AssertionError())
    follow, stop = "raylingvo submit --address A:1 --follow job-1", "ray job stop job-1 --address http://A:1"
    text = f"job job-1: in the cluster\n  follow  {follow}\n  stop    {stop}\n"
    assert command("--address", "A:1", "--detach", *RUN) == (0, text, "")
    answer = {"job": "job-1", "status": "running", "exit_status": None}
    assert command("--address", "A", "--detach", "--json", *RUN).json == answer
    assert len(made.taken) == 2
    made.end = jobs.Ended("finished", 0)
    assert command("--address", "A", "--follow", "job-2").out == "a line\n"
    assert len(made.taken) == 2


def test_sigterm_ends_it_as_ctrl_c_does(command: Command, cluster: Callable[..., Cluster]) -> None:
    made = cluster(jobs.Ended("finished", 0))
    before = signal.getsignal(signal.SIGTERM)
    made.follow = lambda job, write: (signal.raise_signal(signal.SIGTERM), time.sleep(SECONDS))  # type: ignore[method-assign,assignment,return-value]
    assert command("--address", "A", *RUN).status == 130
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_is_ignored_stays_ignored(command: Command, cluster: Callable[..., Cluster]) -> None:
    """As after `nohup`."""
    made = cluster(jobs.Ended("finished", 0))
    made.follow = lambda job, write: (signal.raise_signal(signal.SIGHUP), made.end)[1]  # type: ignore[method-assign]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert command("--address", "A", *RUN).status == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
