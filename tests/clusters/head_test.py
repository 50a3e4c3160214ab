"""A cluster on this machine, with a token, and who uses it: by `raylingvo submit`, and as docs/clusters.md shows."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from command_line import command_of

import raylingvo
from raylingvo import config, registry
from raylingvo.actors import submit as jobs
from raylingvo.actors import working_dir

ROOT = Path(raylingvo.__file__).parents[1]
DOCUMENT = Path(__file__).parents[2] / "docs" / "clusters.md"
SHOWN_URL = "http://127.0.0.1:8265"
SECONDS = 300


class Block(NamedTuple):
    """A fenced block of the document. `skipped`: why a comment before it says that it is not run here."""

    line: int
    language: str
    text: str
    skipped: str | None

    @property
    def is_long(self) -> bool:
        """What Ray's own commands do is not ours; another test leaves a job to the cluster, one that does less."""
        return "ray job submit" in self.text or "--detach" in self.text


def _blocks() -> list[Block]:
    text = DOCUMENT.read_text()
    fence = re.compile(
        r"(?:^<!-- not run by tests/clusters/head_test.py: (?P<why>[\w ]+) -->\n)?"
        r"^```(?P<language>\w*)\n(?P<body>.*?)^```$",
        re.M | re.S,
    )
    return [
        Block(text.count("\n", 0, found.start("body")), found["language"], found["body"], found["why"])
        for found in fence.finditer(text)
    ]


BLOCKS = _blocks()
TO_RUN = [block for block in BLOCKS if not block.skipped]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Head:
    """A Ray that `ray start --head` has started, with a token; and somebody who uses it from a folder of his own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = folder / "project"
        self.project.mkdir()
        (self.project / "clusters").symlink_to(DOCUMENT.parents[1] / "clusters")
        self.url = f"http://127.0.0.1:{_free_port()}"
        (folder / "bin").mkdir()
        for name, module in (("raylingvo", "raylingvo"), ("ray", "ray.scripts.scripts")):
            (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
            (folder / "bin" / name).chmod(0o755)
        without = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in without},
            "HOME": str(folder),
            "PATH": os.pathsep.join((str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"])),
            "PYTHONPATH": str(ROOT),
            "RAY_TMPDIR": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        changed = {**self.environment, **environment}
        return subprocess.run(command, env=changed, cwd=self.project, capture_output=True, text=True, timeout=SECONDS)

    def submit(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("raylingvo", "submit", "--address", self.url, *arguments, **environment)

    def follow(self, text: str) -> subprocess.CompletedProcess[str]:
        """Types the commands of a block."""
        return self.run("bash", "-euo", "pipefail", "-c", text.replace(SHOWN_URL, self.url))


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="head-", ignore_cleanup_errors=True) as folder:
        made = Head(Path(folder))
        made.follow(BLOCKS[0].text).check_returncode()
        start = f"{BLOCKS[1].text.strip()} --block --num-cpus=2 --object-store-memory=200000000 "
        # Those of another Ray on this machine may be taken.
        start += f"--port=0 --dashboard-port={made.url.rpartition(':')[2]} --dashboard-agent-listen-port=0 "
        start += f"--ray-client-server-port={_free_port()}"
        log = Path(folder) / "head.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"export {start.replace(' ray', '; exec ray', 1)}"],
                env=made.environment,
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            end = time.monotonic() + SECONDS
            while not jobs._answers("127.0.0.1", int(made.url.rpartition(":")[2])):
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.1)
            yield made
        finally:
            process.terminate()  # it ends what it has started
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


# In the place of `ssh`: forwards the port that -L names to FORWARD_TO, and stays, as it would for Ray's launcher.
SSH = """#!{python}
import os, socket, sys, threading

def pump(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)

if "-L" in sys.argv:
    port = int(sys.argv[sys.argv.index("-L") + 1].partition(":")[0])
    server = socket.create_server(("127.0.0.1", port))
    while True:
        here, _ = server.accept()
        there = socket.create_connection(("127.0.0.1", int(os.environ["FORWARD_TO"])))
        for ends in ((here, there), (there, here)):
            threading.Thread(target=pump, args=ends, daemon=True).start()
"""


# --- the document ---


def test_what_is_not_run_needs_a_cloud_or_starts_and_stops_ray() -> None:
    assert {block.language for block in BLOCKS} == {"console"}
    assert DOCUMENT.read_text().count("```") == 2 * len(BLOCKS)
    assert [block.skipped for block in BLOCKS[:2]] == [None, "starts"]  # by the fixture, which starts it so
    assert {block.skipped for block in BLOCKS} == {None, "starts", "stops", "needs a job", "cloud"}
    for block in BLOCKS:
        cloud = re.search(r"gcp\.yaml|kubectl|gcloud", block.text) is not None
        assert cloud == (block.skipped == "cloud"), block


@pytest.mark.ray
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=f"line {block.line}", marks=[pytest.mark.slow] if block.is_long else [])
        for block in TO_RUN[1:]
    ],
)
def test_a_block_runs(head: Head, block: Block) -> None:
    done = head.follow(block.text)
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
    assert done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.ray
def test_the_documents_runs_were_in_the_cluster(head: Head) -> None:
    """It has not finished the second, which was detached, when its command ends."""
    first = json.loads((head.project / "runs/first/run.json").read_text())
    assert (first["status"], first["step"]) == ("finished", 20)
    assert f"http://{first['dashboard']}" == head.url


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(shlex.split(line)[1:], id=line[:40])
        for block in BLOCKS
        for line in block.text.replace("\\\n", " ").splitlines()
        if line.startswith("raylingvo submit")
    ],
)
def test_what_is_submitted_is_a_request_that_can_be_met(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Typed for a cluster that takes everything; what it takes are arguments of `raylingvo run`."""
    taken: list[list[str]] = []

    class Taking:
        def submit(self, arguments: list[str], *_: object) -> str:
            taken.append(arguments)
            return "job"

        def follow(self, *_: object) -> jobs.Ended:
            return jobs.Ended("finished", 0)

    monkeypatch.setattr(jobs, "connected", lambda place: contextlib.nullcontext(Taking()))
    arguments = [argument.replace("$PWD", "/here") for argument in arguments]
    assert command_of(monkeypatch, capsys)(*arguments).status == 0
    (sent,) = taken
    assert sent[:3] == ["run", "--address", "auto"]
    settings = [sent[index + 1] for index, argument in enumerate(sent) if argument == "--set"]
    config.override(registry.get(sent[3]), config.parse_assignments(settings))


def test_the_files_that_it_names_exist() -> None:
    text = DOCUMENT.read_text()
    named = set(re.findall(r"\bclusters/[\w/.-]+\w", text))
    assert named >= {f"clusters/{name}" for name in ("gcp.yaml", "local.yaml", "run.py", "kuberay/rayjob.yaml")}
    there = {str(path.relative_to(DOCUMENT.parents[1])) for path in (DOCUMENT.parents[1] / "clusters").rglob("*")}
    assert named - {"clusters/head_test.py"} <= there


# --- raylingvo submit ---


@pytest.mark.ray
@pytest.mark.slow
def test_the_code_of_the_folder_is_there(head: Head) -> None:
    (head.project / "mine.py").write_text(
        "import raylingvo as rl\n\n\n"
        '@rl.register("mine.Short")\n'
        "def short() -> rl.Experiment:\n"
        '    return rl.override(rl.get("image.digits.LeNet5"), {"train.max_steps": 2})\n'
    )
    done = head.submit("--", "inspect", "config", "mine.Short", "--json")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["config"]["train.max_steps"] == 2


@pytest.mark.ray
def test_a_wrong_request_exits_2_also_if_it_is_followed_later(head: Head) -> None:
    wrong = ("--", "run", "image.digits.Nothing", "--logdir", str(head.folder / "nothing"))
    detached = head.submit("--detach", "--json", *wrong)
    assert (detached.returncode, detached.stderr) == (0, "")
    answer = json.loads(detached.stdout)
    assert (answer["status"], answer["exit_status"]) == ("running", None)
    followed = head.submit("--follow", answer["job"])
    assert followed.returncode == 2
    assert "raylingvo: no experiment 'image.digits.Nothing'; did you mean image.digits.LeNet5?" in followed.stdout
    assert "Traceback" not in followed.stdout + followed.stderr


@pytest.mark.ray
def test_without_the_token_nobody_is_let_in(head: Head) -> None:
    wants = f"raylingvo: --address {head.url}: the cluster wants Ray's token; "
    (head.folder / "nobody").mkdir()
    none = head.submit("--", "list", HOME=str(head.folder / "nobody"))
    fix = "put it into ~/.ray/auth_token, and set RAY_AUTH_MODE=token to show it to this address"
    assert (none.returncode, none.stdout, none.stderr) == (2, "", f"{wants}{fix}\n")
    wrong = head.submit("--", "list", RAY_AUTH_TOKEN="0" * 64)
    fix = "yours is another one (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token)"
    assert (wrong.returncode, wrong.stdout, wrong.stderr) == (2, "", f"{wants}{fix}\n")


@pytest.mark.ray
def test_too_large_a_folder_and_a_job_that_is_not_there(head: Head) -> None:
    large = head.folder / "large"
    large.mkdir()
    with (large / "weights.bin").open("wb") as file:
        file.truncate(working_dir.MAX_BYTES)  # it has no blocks on the disk
    refused = head.submit("--working-dir", str(large), "--", "list")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert "the largest: weights.bin (100.0 MiB)" in refused.stderr
    unknown = head.submit("--follow", "raysubmit_x")
    assert unknown.returncode == 2
    lists = f"RAY_AUTH_MODE=token ray job list --address {head.url}"
    assert unknown.stderr.endswith(f"--address {head.url}: there is no job raysubmit_x; `{lists}` shows them\n")


@pytest.mark.ray
def test_the_head_of_a_cluster_file_is_reached_over_ssh_and_left_again(head: Head) -> None:
    cluster = head.project / "mine.yaml"
    text = (DOCUMENT.parents[1] / "clusters" / "local.yaml").read_text()
    cluster.write_text(text.replace("YOUR-USER", "me"))
    down = head.run("raylingvo", "submit", "--cluster", "mine.yaml", "--follow", "raysubmit_x")
    assert (down.returncode, down.stdout, down.stderr.count("\n")) == (2, "", 1)
    assert down.stderr.startswith("raylingvo: --cluster mine.yaml: no way to its head (")
    assert down.stderr.endswith("; to start it: ray up mine.yaml\n")

    # As `ray up` leaves it.
    tags = {"ray-node-type": "head", "ray-node-status": "up-to-date", "ray-node-name": "head"}
    state = {"10.0.0.1": {"tags": tags, "state": "running"}}
    (head.folder / "ray" / "cluster-raylingvo-local.state").write_text(json.dumps(state))
    programs = head.folder / "programs"
    programs.mkdir()
    (programs / "ssh").write_text(SSH.format(python=sys.executable))
    (programs / "ssh").chmod(0o755)
    there = {"FORWARD_TO": head.url.rpartition(":")[2], "PATH": f"{programs}{os.pathsep}{head.environment['PATH']}"}
    reached = head.run("raylingvo", "submit", "--cluster", "mine.yaml", "--follow", "raysubmit_x", **there)
    nothing = "--cluster mine.yaml: there is no job raysubmit_x; `ray exec mine.yaml 'ray job list'` shows them"
    assert (reached.returncode, reached.stderr.splitlines()[-1]) == (2, f"raylingvo: {nothing}")
    running = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert [command for command in running if str(programs / "ssh") in command] == []


# In the place of a run: an experiment whose module waits.
PATIENT = """
import os, signal

def stop(number, frame):
    print("asked to end; there are", os.environ["RAY_JOB_STOP_WAIT_TIME_S"], "s for that", flush=True)
    raise SystemExit(130)

signal.signal(signal.SIGTERM, stop)
print("begun", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.ray
def test_the_command_that_is_said_to_stop_a_job_lets_it_end_by_itself(head: Head) -> None:
    """Its code is in the folder. That a run writes a checkpoint is in tests/actors/interrupt_test.py."""
    (head.project / "patient.py").write_text(PATIENT)
    detached = head.submit("--detach", "--", "inspect", "config", "patient.Patient")
    follow, stop = re.findall(r"^  (?:follow|stop)  +(.+)$", detached.stdout, re.M)
    assert stop.startswith("RAY_AUTH_MODE=token ray job stop raysubmit_")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(shlex.split(follow), env=head.environment, cwd=head.project, text=True, **pipes) as following:
        assert following.stdout is not None
        for line in following.stdout:
            if line == "begun\n":
                break
        stopped = head.follow(stop)
        out, err = following.communicate(timeout=SECONDS)
    assert stopped.returncode == 0, stopped.stderr
    assert (following.returncode, out) == (130, "asked to end; there are 300 s for that\n")
    assert err.endswith("raylingvo: the job was stopped\n")


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_that_is_left_goes_on_and_one_that_is_stopped_writes_a_checkpoint(head: Head) -> None:
    logdir = head.folder / "long"
    run = ("run", "image.digits.LeNet5", "--logdir", str(logdir), "--set", "train.max_steps=100000")
    job = json.loads(head.submit("--detach", "--json", "--", *run).stdout)["job"]
    follow = [sys.executable, "-m", "raylingvo", "submit", "--address", head.url, "--follow", job]
    with subprocess.Popen(
        follow, env=head.environment, cwd=head.project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as left:
        assert left.stdout is not None
        for line in left.stdout:
            if line.startswith("eval test @"):
                break
        left.send_signal(signal.SIGINT)
        _, said = left.communicate(timeout=SECONDS)
    assert left.returncode == 130
    assert said.endswith(f"to follow it: raylingvo submit --address {head.url} --follow {job}\n")
    assert json.loads((logdir / "run.json").read_text())["status"] == "running"

    head.run("ray", "job", "stop", job, "--address", head.url, RAY_AUTH_MODE="token").check_returncode()
    stopped = head.submit("--follow", job)
    assert stopped.returncode == 130
    assert stopped.stderr.endswith("raylingvo: the job was stopped\n")
    info = json.loads((logdir / "run.json").read_text())
    assert info["status"] == "interrupted"
    assert (logdir / "train" / "checkpoints" / str(info["step"])).is_dir()
