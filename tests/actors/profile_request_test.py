"""`raylingvo profile`: which Ray it asks, and what it says of a run that it cannot ask; and of real runs, profiles."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import signal
import socket
import time
import types
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import gates
import psutil
import pytest
import ray
from command_line import Command, command_of
from ray.exceptions import GetTimeoutError, RayActorError
from running import SECONDS, Watcher
from toy_run import arguments, experiment, read_until, started

from raylingvo.actors import cluster as ray_cluster
from raylingvo.actors import detached, profile_request
from raylingvo.actors.remote import TRAINERS
from raylingvo.errors import RequestError
from raylingvo.monitor.runs import Run, load_run

RUN = "Toy-1"
LONG = 10_000_000  # steps


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """command(*arguments): runs `raylingvo profile ARGUMENTS` in this process."""
    return command_of(monkeypatch, capsys, "profile")


# --- which Ray is asked; there is none here ---


@pytest.fixture
def joins(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """How a Ray is joined, and which; there is no Trainer in any."""
    found: list[tuple[str, str | None]] = []

    def joining(how: str) -> Callable[[str | None], contextlib.AbstractContextManager[None]]:
        def join(address: str | None) -> contextlib.AbstractContextManager[None]:
            found.append((how, address))
            return contextlib.nullcontext()

        return join

    for how in ("joined", "rejoined"):
        monkeypatch.setattr(profile_request, how, joining(how))
    monkeypatch.setattr(profile_request, "_trainers", dict)
    monkeypatch.setattr(profile_request, "driver_ids", list)
    return found


def _logdir(folder: Path, **fields: Any) -> Path:
    """That of a run in this process."""
    me = psutil.Process()
    process = {"host": socket.gethostname(), "pid": me.pid, "created": me.create_time() - psutil.boot_time()}
    info = {"id": RUN, "status": "running", "process": process, "ray": {"address": "127.0.0.1:9", "own": True}}
    (folder / "run.json").write_text(json.dumps(info | fields))
    return folder


NO_TRAINER = f"raylingvo: run {RUN} has no Trainer there now: there are no steps to profile\n"


@pytest.mark.parametrize(
    ("there", "options", "joined"),
    [
        ({"address": "127.0.0.1:9", "own": True}, (), ("rejoined", "127.0.0.1:9")),
        ({"address": "10.0.0.1:9", "own": False}, (), ("joined", "10.0.0.1:9")),
        ({"address": "127.0.0.1:9", "own": True}, ("--address", "b:1"), ("joined", "b:1")),
        (None, ("--address", "b:1"), ("joined", "b:1")),
    ],
)
def test_the_logdir_says_which_ray_the_run_has(
    command: Command,
    tmp_path: Path,
    joins: list[Any],
    there: Mapping[str, Any] | None,
    options: tuple[str, ...],
    joined: tuple[str, str],
) -> None:
    assert command(_logdir(tmp_path, ray=there), *options) == (2, "", NO_TRAINER)
    assert joins == [joined]


def test_an_id_is_one_of_the_cluster_of_this_machine(command: Command, joins: list[Any]) -> None:
    said = "no run 'Toy': there are no runs in this cluster; of one that is over, give the logdir"
    assert command("Toy") == (2, "", f"raylingvo: {said}\n")
    assert joins == [("joined", None)]


def test_a_run_that_cannot_be_asked_is_not_looked_for(command: Command, tmp_path: Path, joins: list[Any]) -> None:
    def said(**fields: Any) -> str:
        status, out, err = command(_logdir(tmp_path, **fields))
        assert (status, out) == (2, "")
        return err.removeprefix("raylingvo: ").removesuffix("\n")

    assert said(status="finished") == f"run {RUN} is over (finished): there are no steps to profile"
    dead = {"host": socket.gethostname(), "pid": os.getpid(), "created": 0.0}
    assert said(process=dead) == f"run {RUN} is over (died): there are no steps to profile"
    assert said(ray=None) == f"run {RUN} is a trial of a sweep, which works for others too: it cannot be profiled"
    elsewhere = {"host": "elsewhere", "pid": 1, "created": 0.0}
    assert said(process=elsewhere) == f"run {RUN} has a Ray of its own on elsewhere; profile it there"
    shutil.rmtree(tmp_path)
    assert command(tmp_path).err == f"raylingvo: LOGDIR {tmp_path} is not a logdir: it has no run.json\n"
    assert joins == []


def test_the_token_is_not_led_to_where_another_user_listens(
    command: Command, tmp_path: Path, joins: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: (tmp_path / "run.json").stat().st_uid + 1)
    said = f"raylingvo: run {RUN} is another user's, as is its Ray\n"
    assert command(_logdir(tmp_path)) == (2, "", said)
    assert joins == []
    assert command(_logdir(tmp_path, ray={"address": "10.0.0.1:9", "own": False})) == (2, "", NO_TRAINER)
    assert joins == [("joined", None)]


def test_what_everybody_may_write_is_another_users_word(command: Command, tmp_path: Path, joins: list[Any]) -> None:
    logdir = _logdir(tmp_path)
    (logdir / "run.json").chmod(0o664)  # as with umask 002
    assert command(logdir) == (2, "", NO_TRAINER)
    assert joins == [("rejoined", "127.0.0.1:9")]
    (logdir / "run.json").chmod(0o646)
    said = f"run {RUN} has a run.json that everybody may write: `chmod o-w` it, if it says what it should"
    assert command(logdir) == (2, "", f"raylingvo: {said}\n")
    assert len(joins) == 1


def test_whose_word_it_is_was_seen_when_it_was_read(
    command: Command, tmp_path: Path, joins: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ours").mkdir()
    ours = _logdir(tmp_path / "ours") / "run.json"

    def home_of(name: str) -> Run | None:
        home = detached.home_of(name)
        (tmp_path / "run.json").unlink()
        (tmp_path / "run.json").symlink_to(ours)
        return home

    (_logdir(tmp_path) / "run.json").chmod(0o646)
    monkeypatch.setattr(profile_request, "home_of", home_of)
    assert "that everybody may write" in command(tmp_path).err
    assert joins == []


def test_the_token_is_not_led_to_another_machine(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "show_token", lambda: pytest.fail("shown"))
    said = "raylingvo: '198.51.100.1:9' is no address of this machine: Ray's token is not shown to it\n"
    assert command(_logdir(tmp_path, ray={"address": "198.51.100.1:9", "own": True})) == (2, "", said)


@pytest.mark.parametrize(
    "fields",
    [
        {"status": None},
        {"status": ["running"]},
        {"ray": "127.0.0.1:9"},
        {"ray": {"own": True}},
        {"ray": {"own": True, "address": None}},
        {"ray": {"own": "no", "address": "127.0.0.1:9"}},
        {"ray": {"own": False, "address": 9}},
        {"process": None},
        {"process": "me"},
        {"process": {"host": socket.gethostname()}},
        {"process": {"host": socket.gethostname(), "pid": -1, "created": 0.0}},
        {"process": {"host": socket.gethostname(), "pid": 1, "created": "yesterday"}},
    ],
)
def test_a_damaged_record_is_said_to_be_so(
    command: Command, tmp_path: Path, joins: list[Any], fields: Mapping[str, Any]
) -> None:
    status, out, err = command(_logdir(tmp_path, **fields))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"raylingvo: LOGDIR {tmp_path}")
    assert "run.json is damaged: " in err
    assert joins == []


@pytest.mark.parametrize("own", [False, True])
def test_a_run_that_has_just_ended(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    monkeypatch.setattr(ray_cluster, "show_token", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    status, out, err = command(_logdir(tmp_path, ray={"address": address, "own": own}))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"raylingvo: the Ray of run {RUN} cannot be reached: no Ray cluster there (")
    assert err.endswith("; the run has probably ended\n")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, Any]]:
    """The Trainers of a Ray, by name: what `status` and `profile` answer, an exception if it is raised."""
    found: dict[str, tuple[Any, Any]] = {}

    def method(answer: Any) -> Any:
        return types.SimpleNamespace(remote=lambda *_: answer)

    def get_actor(name: str, namespace: str) -> Any:
        assert namespace == TRAINERS
        if name not in found:
            raise ValueError(f"no actor {name}")
        status, profile = found[name]
        return types.SimpleNamespace(status=method(status), profile=method(profile))

    def fetch(answer: Any, _: float) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray, "get_actor", get_actor)
    monkeypatch.setattr(profile_request, "fetch", fetch)
    return found


@pytest.mark.parametrize(
    ("status", "profile", "message"),
    [
        (GetTimeoutError(), None, "the Trainer does not answer, as before it has started: there are no steps to pro"),
        (RayActorError(), None, "the Trainer has just ended: there are no steps to profile"),
        ({}, RayActorError(), "the Trainer died before its profile was taken"),
        ({}, GetTimeoutError(), "the Trainer has not answered for 600 s"),
    ],
)
def test_a_trainer_that_does_not_answer(
    command: Command,
    tmp_path: Path,
    joins: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    answers: dict[str, tuple[Any, Any]],
    status: Any,
    profile: Any,
    message: str,
) -> None:
    monkeypatch.setattr(profile_request, "_trainers", lambda: {RUN: [f"{RUN}/life"]})
    answers[f"{RUN}/life"] = status, profile
    ended = command(_logdir(tmp_path))
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith(f"raylingvo: {message}")


@pytest.mark.parametrize("dead", [RayActorError(), GetTimeoutError(), None])
@pytest.mark.parametrize("order", [1, -1])
def test_of_several_lives_the_one_that_answers_is_asked(
    tmp_path: Path,
    joins: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    answers: dict[str, tuple[Any, Any]],
    dead: Exception | None,
    order: int,
) -> None:
    """dead: what one that was killed and is still listed raises; None: it has gone since it was listed."""
    lives = [f"{RUN}/killed", f"{RUN}/alive"][::order]
    monkeypatch.setattr(profile_request, "_trainers", lambda: {RUN: lives})
    if dead is not None:
        answers[f"{RUN}/killed"] = dead, dead
    answers[f"{RUN}/alive"] = {}, {"steps": 3}
    assert profile_request.profile(str(_logdir(tmp_path)), 3, None) == {"steps": 3}


def test_all_lives_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [("a/1", TRAINERS), ("b/1", TRAINERS), ("a/2", TRAINERS), ("c/1", "another")]
    listed = [{"name": name, "namespace": namespace} for name, namespace in names]
    monkeypatch.setattr(ray.util, "list_named_actors", lambda **_: listed)
    assert profile_request._trainers() == {"a": ["a/1", "a/2"], "b": ["b/1"]}


# --- real runs ---


def _trace(folder: str) -> str:
    (file,) = Path(folder).glob("*.trace.json.gz")
    return gzip.decompress(file.read_bytes()).decode()


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_in_the_foreground_is_profiled_from_elsewhere_and_goes_on(
    command: Command, tmp_path: Path, new_gate: Callable[[str], gates.Gate]
) -> None:
    """It has started a Ray of its own, which wants Ray's token."""
    gate, logdir = new_gate("gate"), tmp_path / "run"
    with started(experiment(gate.folder, max_steps=LONG), tmp_path) as process:
        gate.wait()  # it is in the middle of a step
        assert load_run(logdir).info["ray"]["own"]
        with profile_request._ray_of(load_run(logdir)), ThreadPoolExecutor(2) as others:
            asked = {others.submit(profile_request.profile, str(logdir), 3, None) for _ in range(2)}
            (refused,), (waits,) = wait(asked, SECONDS, FIRST_COMPLETED)
            with pytest.raises(RequestError, match=r"^a profile of this run is being taken already$"):
                refused.result()
            gate.open()
            assert waits.result(SECONDS)["steps"] >= 3
        assert not ray.is_initialized()
        taken = command(logdir, "--steps", 20, "--json").json
        assert taken["steps"] >= 20
        assert Path(taken["folder"]).is_relative_to(logdir / "train" / "plugins" / "profile")
        assert "traceEvents" in json.loads(_trace(taken["folder"]))
        process.send_signal(signal.SIGINT)
        read_until(process.stderr, "stopping: SIGINT")
        out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    ended = json.loads(out.splitlines()[-1])
    assert ended["step"] > taken["from_step"] + taken["steps"]
    over = f"raylingvo: run {ended['run']} is over (interrupted): there are no steps to profile\n"
    assert command(logdir) == (2, "", over)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_run_in_the_cluster_is_profiled_and_goes_on(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others = command_of(monkeypatch, capsys)
    run = others(*arguments(experiment(max_steps=LONG), tmp_path), "--detach").json["run"]
    view = Watcher()
    with detached.open_run(run, None) as found:
        try:
            _wait_until_it_trains(run)
            _wait_until_exported(others, run, {"step", "learning_rate", "elapsed_seconds", "store_bytes"})
            assert "learning_rate" in others("status", run).out
            assert command(run, "--steps", 20, "--json").json["steps"] >= 20
            said = command(tmp_path / "run", "--steps", 1)
            assert said.status == 0
            assert said.out.startswith("profile of steps ")
        finally:
            ending = found.stop("enough", view)
    assert ending.exit_status == 130
    over = f"raylingvo: run {run} is over (interrupted): there are no steps to profile\n"
    assert command(tmp_path / "run") == (2, "", over)
    assert profile_request._trainers() == {}


def _wait_until_it_trains(run: str) -> None:
    refused: set[str] = set()
    for _ in range(10 * SECONDS):
        try:
            profile_request.profile(run, 1, None)
        except RequestError as error:
            refused.add(str(error))
        else:
            assert all("there are no steps to profile" in message for message in refused)
            return
    pytest.fail(f"it does not train: {refused}")


def _wait_until_exported(command: Command, run: str, names: set[str]) -> None:
    """The driver asks the roles about once a second."""
    end = time.monotonic() + SECONDS
    shown: set[str] = set()
    while not names <= shown and time.monotonic() < end:
        shown = {sample["name"] for sample in command("status", run, "--json").json.get("samples", ())}
    assert names <= shown
