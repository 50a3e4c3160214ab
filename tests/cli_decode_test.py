"""`raylingvo decode --input`: in a conversation, before a pipe, when it is told to stop; averages, other settings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, command_of
from line_task import write_run

import raylingvo

# Far more than anything here takes; who waited for the end of the input would wait for ever.
pytestmark = pytest.mark.timeout(300)
LINES = ["3 4", "", "5 6 7", "11"]
KEEP = "train.checkpoints.keep_last says how many a run keeps"


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    write_run(path)
    return path


@pytest.fixture
def decode(logdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """decode(*arguments): runs `raylingvo decode --logdir RUN ARGUMENTS` in this process."""
    return command_of(monkeypatch, capsys, "decode", "--logdir", logdir)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "input.txt"
    path.write_text("".join(f"{line}\n" for line in LINES))
    return path


def test_a_file(decode: Command, file: Path, logdir: Path) -> None:
    ended = decode("--input", file)
    assert ended.status == 0
    assert [(output["line"], output["input"]) for output in ended.outputs] == list(enumerate(LINES, 1))
    assert ended.err == "decode @ 8: 4 lines\n1 of 4 lines has a note: 1 empty line\n"

    as_json = decode("--input", file, "--json")
    assert as_json.outputs == [
        {
            "run": "Copy-1",
            "experiment": "toy.Copy",
            "logdir": str(logdir),
            "step": 8,
            "outputs": ended.outputs,
        }
    ]


def test_an_average_with_other_settings(decode: Command, file: Path) -> None:
    how = ("--average", 2, "--set", "task.num_hyps_per_beam=1", "--input", file)
    mean = decode(*how)
    assert mean.err.startswith("decode @ 8 (average of 4, 8): 4 lines\n")
    assert [output["scores"] for output in mean.outputs] == [
        [-output["scores"][0]] for output in decode("--input", file, "--checkpoint", 4).outputs
    ]
    result = decode(*how, "--json").outputs[0]
    assert (result["step"], result["average"], result["set"]) == (8, [4, 8], {"task.num_hyps_per_beam": "1"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--average", 3), f"--average 3: the checkpoints up to step 8 are 4, 8; {KEEP}"),
        (("--average", 2, "--checkpoint", 4), f"--average 2: the checkpoints up to step 4 are 4; {KEEP}"),
        (("--average", 0), "--average must be >= 1 (got 0)"),
        (("--average", 2, "--checkpoint", "best"), "--checkpoint best: this experiment sets no train.checkpoints.best"),
        (
            ("--average", 2, "--checkpoint", "all"),
            "--average goes with one checkpoint, latest, best or a step, not with --checkpoint all",
        ),
        (
            ("--set", "task.num_hyps_per_bean=3"),
            "unknown key task.num_hyps_per_bean (got '3'); did you mean task.num_hyps_per_beam (an int)?",
        ),
        (("--set", "task.num_hyps_per_beam=x"), "task.num_hyps_per_beam: expected an int (got 'x')"),
        (
            ("--set", "train.seed=1"),
            "decode --set changes settings of the task only, keys below task. (got train.seed)",
        ),
        (("--set", "task.beam"), "expected KEY=VALUE, such as train.batch_size=64 (got 'task.beam')"),
    ],
)
def test_what_is_refused(decode: Command, file: Path, arguments: tuple[object, ...], message: str) -> None:
    assert decode(*arguments) == (2, "", f"raylingvo: {message}\n")
    if arguments[-1] != "all":
        assert decode(*arguments, "--input", file) == (2, "", f"raylingvo: {message}\n")


def test_lines_before_one_that_is_not_utf8_are_printed(decode: Command, file: Path) -> None:
    file.write_bytes(b"3 4\r\n5\n\xff\n6")
    ended = decode("--input", file)
    assert (ended.status, [output["input"] for output in ended.outputs]) == (2, ["3 4", "5"])
    assert ended.err.startswith(f"raylingvo: --input {file}: line 3 is not UTF-8 (")
    assert ended.err.count("\n") == 1


def started(logdir: Path, directory: Path) -> subprocess.Popen[str]:
    """`raylingvo decode --logdir LOGDIR --input -` as a process of its own, to be talked to."""
    pipe = subprocess.PIPE
    paths = [str(Path(raylingvo.__file__).parents[1]), str(Path(__file__).parent)]
    return subprocess.Popen(
        [sys.executable, "-m", "raylingvo", "decode", "--logdir", str(logdir), "--input", "-"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        bufsize=1,
        # A shell's background jobs, and so their children, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def ask(process: subprocess.Popen[str], line: str) -> dict[str, Any]:
    """Writes a line, and reads its output before anything else is written."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{line}\n")
    return json.loads(process.stdout.readline())


def test_a_conversation_that_ctrl_c_ends(logdir: Path, tmp_path: Path) -> None:
    with started(logdir, tmp_path) as process:
        assert [ask(process, line)["input"] for line in LINES] == LINES
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err.strip() == ""


def test_it_ends_quietly_when_nobody_reads_any_more(logdir: Path, tmp_path: Path) -> None:
    """As with `| head -1`."""
    with started(logdir, tmp_path) as process:
        assert ask(process, "3 4")["line"] == 1
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.stdin.write("5\n")
        err = process.stderr.read()
        assert process.wait() == 0
    assert err == ""
