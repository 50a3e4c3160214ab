"""The logdir of a run: who may write there, what run.json says, and that damage is told in one line."""

import contextlib
import dataclasses
import json
import subprocess
import sys

import pytest
import toy

from raylingvo.actors.git import GIT_SHA, git_sha
from raylingvo.actors.logdir import Logdir, hold, read_experiment, read_info
from raylingvo.errors import RequestError
from raylingvo.experiment import Resources, RoleResources, WarmStart
from raylingvo.parallel.mesh import Mesh
from raylingvo.training import checkpoints

EXPERIMENT = toy.experiment()


@pytest.fixture
def home(tmp_path):
    """A logdir in which a run has started, closed again."""
    logdir = Logdir(tmp_path, EXPERIMENT)
    logdir.begin(["raylingvo"], dashboard=None)
    logdir.close()
    return tmp_path


def test_it_gives_back_the_experiment_and_the_id(home):
    assert read_experiment(home) == EXPERIMENT
    logdir = Logdir(home, EXPERIMENT)
    assert logdir.info == read_info(home)
    logdir.close()


def test_nothing_is_written_before_a_run_begins(tmp_path):
    Logdir(tmp_path / "new", EXPERIMENT).close()
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]
    assert read_info(tmp_path / "new") is None


def test_a_run_that_goes_on_has_no_result_yet(home):
    assert read_info(home)["result"] is None
    logdir = Logdir(home, EXPERIMENT)
    logdir.update(status="interrupted", stop_reason="SIGINT", ended=1.0, result={"step": 3})
    logdir.begin(["raylingvo"])
    logdir.close()  # as if it had been killed
    info = read_info(home)
    assert (info["status"], info["stop_reason"], info["ended"], info["result"]) == ("running", None, None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"id": "x", ', "it is not JSON (Expecting property name"),
        (b"", "it is not JSON (Expecting value"),
        (b'{"id": "\xff"}', "it is not JSON ('utf-8' codec can't decode byte 0xff"),
        (b"[]", "it is not an object with id and status"),
        (b'{"id": "x"}', "it is not an object with id and status"),
    ],
    ids=["cut", "empty", "not UTF-8", "list", "fields"],
)
def test_a_damaged_run_json_is_named_in_one_line(home, content, message):
    (home / "run.json").write_bytes(content)
    for read in (read_info, lambda path: Logdir(path, EXPERIMENT)):
        with pytest.raises(RequestError) as raised:
            read(home)
        assert str(raised.value).startswith(f"{home}/run.json is damaged: {message}")
        assert str(raised.value).endswith("; delete it, and the run goes on from its checkpoints under a new id")
        assert "\n" not in str(raised.value)
    with hold(home):  # the refusal has left no lock behind
        pass
    (home / "run.json").unlink()  # as the message says
    Logdir(home, EXPERIMENT).close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: caf\xe9\n", "config.yaml is damaged: it is not UTF-8 ("),
        (b"name: [\n", "config.yaml: not valid YAML: line 2"),
        (b"name: other\n", "config.yaml: "),
        (b"", "config.yaml is damaged: it is empty; put a copy back"),
        (bytes(4096), "config.yaml is damaged: it is empty; put a copy back"),
    ],
    ids=["not UTF-8", "not YAML", "incomplete", "empty", "zeroed"],
)
def test_a_damaged_config_is_named_in_one_line(home, content, message):
    (home / "config.yaml").write_bytes(content)
    for read in (read_experiment, lambda path: Logdir(path, EXPERIMENT)):
        with pytest.raises(RequestError) as raised:
            read(home)
        assert str(raised.value).startswith(f"{home}/{message}")
        assert "\n" not in str(raised.value)


def test_another_experiment_is_refused_with_the_differences(home):
    with pytest.raises(
        RequestError, match=r"belongs to a run of another experiment(?s:.*)\n  train.max_steps: 12 -> 13$"
    ):
        Logdir(home, toy.experiment(max_steps=13))


def test_a_run_may_go_on_with_other_resources_and_is_then_known_by_these(home):
    resources = Resources(
        trainer=RoleResources(num_gpus=8.0), hosts=2, mesh=Mesh(fsdp="data"), store=RoleResources(custom={"big": 1.0})
    )
    larger = dataclasses.replace(EXPERIMENT, resources=resources)
    before = read_info(home)
    with contextlib.closing(Logdir(home, larger)) as logdir:
        assert logdir.info["id"] == before["id"]
        assert logdir.experiment_for_roles() == larger
        assert read_experiment(home) == EXPERIMENT  # nothing is written before it begins
        logdir.begin(["raylingvo"])
    assert read_experiment(home) == larger
    Logdir(home, EXPERIMENT).close()


def test_with_other_resources_another_experiment_is_refused_all_the_same(home):
    another = dataclasses.replace(toy.experiment(seed=1), resources=Resources(hosts=2))
    with pytest.raises(RequestError) as raised:
        Logdir(home, another)
    # Nobody needs to undo what may differ.
    assert str(raised.value).splitlines()[1:] == ["  train.seed: 0 -> 1"]


def test_a_logdir_in_use_is_refused_until_it_is_closed(home):
    first = Logdir(home, EXPERIMENT)
    with pytest.raises(RequestError, match="another raylingvo process is running in it"):
        Logdir(home, EXPERIMENT)
    first.close()
    Logdir(home, EXPERIMENT).close()


def test_the_lock_of_a_killed_process_is_none(home):
    script = (
        "import pathlib, sys; from raylingvo.actors.logdir import hold\n"
        "with hold(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script, home], text=True, **pipes) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(RequestError, match="another raylingvo process is running in it"), hold(home):
                pass
        finally:
            holder.kill()
    Logdir(home, EXPERIMENT).close()


def test_a_file_left_by_a_lock_is_none_wherever_it_comes_from(home):
    """What holds a logdir is a lock of the kernel's, which ends with its process; the file is only its place."""
    (home / ".lock").write_text("4711@another-host\n")
    Logdir(home, EXPERIMENT).close()
    assert (home / ".lock").read_text() == "4711@another-host\n"


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RequestError, match=r"is not empty and has no config\.yaml"):
        Logdir(tmp_path, EXPERIMENT)
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.txt", ".lock"}


def test_run_json_is_json(home):
    info = json.loads((home / "run.json").read_text())
    assert info.keys() >= {"id", "experiment", "status", "command", "git_sha", "versions", "seed", "hosts", "result"}


def test_the_commit_is_that_of_the_folder_or_the_one_that_a_job_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def recorded():
        with contextlib.closing(Logdir(tmp_path / ".git" / "run", EXPERIMENT)) as logdir:
            logdir.begin(["raylingvo"])
            return logdir.info["git_sha"]

    monkeypatch.delenv(GIT_SHA, raising=False)
    assert recorded() is None
    monkeypatch.setenv(GIT_SHA, "abc+")
    assert recorded() == "abc+"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    sha = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert recorded() == git_sha(tmp_path) == sha
    (tmp_path / "mine.py").touch()
    assert recorded() == f"{sha}+"


def test_the_source_of_a_warm_start_is_found_once(tmp_path, monkeypatch):
    source, home = tmp_path / "here" / "runs" / "source", tmp_path / "home"
    (source / checkpoints.DIRECTORY / "300").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    experiment = toy.experiment(warm_start=WarmStart(logdir="runs/source"))
    with contextlib.closing(Logdir(home, experiment)) as logdir:
        found = logdir.experiment_for_roles().train.warm_start
        assert (found.logdir, found.checkpoint) == (str(source), 300)
        logdir.begin(["raylingvo"], warm_start={"logdir": found.logdir, "checkpoint": found.checkpoint})
    assert read_experiment(home) == experiment
    # The other run goes on and ours is started again elsewhere: nothing changes.
    (source / checkpoints.DIRECTORY / "400").mkdir()
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(Logdir(home, experiment)) as logdir:
        assert logdir.experiment_for_roles().train.warm_start == found
    with (
        contextlib.closing(Logdir(tmp_path / "new", experiment)) as logdir,
        pytest.raises(RequestError, match=r"^train.warm_start.logdir: no checkpoint in .*runs/source"),
    ):
        logdir.experiment_for_roles()


def test_a_run_that_came_to_nothing_leaves_room_for_another(home):
    another = toy.experiment(max_steps=13)
    with contextlib.closing(Logdir(home, EXPERIMENT)) as logdir:
        logdir.forget()
    with contextlib.closing(Logdir(home, another)) as logdir:
        logdir.begin(["raylingvo"])
        (home / "control" / "model_analysis.txt").touch()  # as after its first step
        logdir.forget()
    assert read_experiment(home) == another
