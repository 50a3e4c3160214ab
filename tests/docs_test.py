"""What README.md and docs/ show works: every command and program in them is run, in their order.

The first one of README is run by .ci/run, and those that train models of text are typed as by a reader, with a Ray of
their own. The commands of the others are run in this process, in one Ray: to import all that they need, and to start a
Ray, takes longer than what most of them do.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
from command_line import Command, command_of
from running import own_ray

import raylingvo
from raylingvo import config, registry

ROOT = Path(__file__).parents[1]
# The order in which they build on each other.
_DOCS = (
    "run.md",
    "tune.md",
    "experiments.md",
    "data.md",
    "language_models.md",
    "tutorials/translation.md",
    "translation.md",
    "results.md",
    "monitoring.md",
)
DOCUMENTS = (ROOT / "README.md", *(ROOT / "docs" / name for name in _DOCS))
OF_CLUSTERS = ROOT / "docs/clusters.md"  # on one, by tests/clusters/head_test.py
ONE_PROGRAM = ROOT / "docs/ops.md"  # whose blocks are run together, by the last test
RUN, SHOWN = {"console", "python"}, {"text"}
SECONDS = 500  # far more than any block takes
# The one difference to what a reader of the tutorial types: so few steps that there is time for them here. The
# first and the last have a checkpoint; the second only if the first one's is already written.
TUTORIAL_STEPS = "train.max_steps=10000"
_FEW_STEPS = "train.max_steps=3 --set train.checkpoints.every_steps=1"
# These train models for minutes in all. Their commands and programs begin as a reader's do, without Python, and without
# Ray.
OF_TEXT = {"translation.md", "language_models.md"}


class Block(NamedTuple):
    """A fenced block. An HTML comment before it may say that it takes long, or (`skipped`) why it is not run here."""

    document: Path
    line: int
    language: str
    text: str
    skipped: str | None
    slow: bool

    @property
    def id(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def _blocks(document: Path) -> Iterator[Block]:
    text = document.read_text()
    fence = re.compile(
        r"(?:^<!-- (?:not run by tests/docs_test.py: (?P<why>\w+)|(?P<slow>run by pytest -m slow)) -->\n)?"
        r"^```(?P<language>\w*)\n(?P<body>.*?)^```$",
        re.M | re.S,
    )
    for found in fence.finditer(text):
        line = text.count("\n", 0, found.start("body"))
        yield Block(document, line, found["language"], found["body"], found["why"], found["slow"] is not None)


BLOCKS = [block for document in DOCUMENTS for block in _blocks(document)]
TO_RUN = [block for block in BLOCKS if block.language in RUN and not block.skipped]


def _timed(block: Block) -> Any:
    """The long ones: `pytest -m slow -n 0 tests/docs_test.py`."""
    slow = block.slow or block.document.name in OF_TEXT
    return pytest.param(block, marks=pytest.mark.slow) if slow else block


class Reader:
    """Somebody who follows the documents in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = {"RAYLINGVO_DATA": str(directory / "data"), "XDG_CACHE_HOME": str(directory / "cache")}
        self._environment = {
            **os.environ,
            "PATH": f"{_command(directory / 'bin')}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(raylingvo.__file__).parents[1]),
            **self.data,
        }

    def follow(self, block: Block, command: Command) -> None:
        """Types the commands, saves the module (its first line is `# its name`), or runs the program."""
        module = re.match(r"# (\w+\.py)\n", block.text)
        text = block.text.replace(TUTORIAL_STEPS, _FEW_STEPS)
        commands = [] if block.document.name in OF_TEXT else _commands(text)
        if module:
            (self.directory / module[1]).write_text(block.text)
        elif block.language == "python" and block.document.name in OF_TEXT:
            self._run(sys.executable, "-c", block.text)
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(block.text, {})
            assert printed.getvalue()
        elif not commands:
            self._run("bash", "-euo", "pipefail", "-c", text)
        for arguments in commands:
            done = command(*arguments)
            assert done.status == 0, f"{arguments}\nexits {done.status}:\n{done.out}\n{done.err}"
            assert done.out
            assert "Traceback" not in done.err

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command, cwd=self.directory, env=self._environment, capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, f"{command[-1]}\nexits {done.returncode}:\n{done.stdout}\n{done.stderr}"
        assert done.stdout
        assert "Traceback" not in done.stderr


def _commands(text: str) -> list[list[str]]:
    """The arguments of each `raylingvo`; none if there are other programs, or only a shell understands it."""
    lines = text.replace("\\\n", "").splitlines()
    if re.search(r"[|&;<>$`#]", text) or not all(line.startswith("raylingvo ") for line in lines):
        return []
    return [shlex.split(line)[1:] for line in lines]


def _command(folder: Path) -> Path:
    """The folder of the `raylingvo` command: the installed one's, or `folder` with one that is like it."""
    installed = Path(sys.executable).with_name("raylingvo")
    if installed.exists():
        return installed.parent
    folder.mkdir()
    (folder / "raylingvo").write_text(f"#!{sys.executable}\nfrom raylingvo.cli import main\n\nmain()\n")
    (folder / "raylingvo").chmod(stat.S_IRWXU)
    return folder


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    directory = tmp_path_factory.mktemp("reader")
    random = np.random.default_rng(0)
    arrays = {}
    for split, size in (("train", 300), ("test", 40)):
        arrays[f"x_{split}"] = random.integers(256, size=(size, 28, 28), dtype=np.uint8)
        arrays[f"y_{split}"] = random.integers(10, size=size)
    np.savez(directory / "mnist.npz", **arrays)  # the file that the README's reader has
    _write_corpus(directory / "data" / "corpus")
    return Reader(directory)


def _write_corpus(folder: Path) -> None:
    """The text files that the reader of the translation's tutorial has: 60 pairs, and 4 others."""
    english, german = ["one", "two", "three", "four"], ["ein", "zwei", "drei", "vier"]
    things = {"apples": "Äpfel", "pears": "Birnen", "nuts": "Nüsse", "eggs": "Eier"}
    pairs = [
        (f"I see {english[i]} hundred and {english[j]} {thing}.", f"Ich sehe {german[i]}hundert{german[j]} {ding}.")
        for i in range(4)
        for j in range(4)
        for thing, ding in things.items()
    ]
    folder.mkdir(parents=True)
    for name, part in (("train", pairs[:60]), ("dev", pairs[60:])):
        for side, texts in zip(("source", "target"), zip(*part, strict=True), strict=True):
            (folder / f"{name}.{side}").write_text("".join(f"{text}\n" for text in texts))


@pytest.fixture(scope="module")
def cluster(reader: Reader) -> Iterator[None]:
    """The Ray of what is run in this process; what the reader starts is not to know of it."""
    # As in a Ray that a run starts for itself, in which roles do not step back.
    with mock.patch.dict(os.environ, {"RAY_worker_niceness": "0"}), own_ray(num_cpus=2):
        yield


@pytest.fixture
def here(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is in the reader's directory; of the modules there it keeps none."""
    monkeypatch.chdir(reader.directory)
    for name, value in reader.data.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "path", [*sys.path, str(reader.directory)])
    registry.names()  # all that are built in
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    yield
    for file in reader.directory.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.mark.ray
@pytest.mark.usefixtures("here", "cluster")
@pytest.mark.parametrize("block", [_timed(block) for block in TO_RUN], ids=lambda block: block.id)
def test_a_block_runs(
    reader: Reader, block: Block, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader.follow(block, command_of(monkeypatch, capsys))


@pytest.mark.ray
def test_everything_in_a_logdir_is_documented(reader: Reader) -> None:
    logdir = reader.directory / "runs" / "spirals"
    documented = set(re.findall(r"`([\w/]+)`", (ROOT / "docs" / "run.md").read_text()))
    info = json.loads((logdir / "run.json").read_text())
    assert info.keys() | info["result"].keys() <= documented

    task_metrics = {"loss", "accuracy", "correct", "step", "time"}
    for folder in ("train", "eval_test", "decode_test"):
        last = json.loads((logdir / folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert last.keys() - task_metrics <= documented


def test_the_readme_opens_with_the_two_commands_that_ci_runs() -> None:
    script = ROOT / ".ci" / "run"
    lines = {line.strip() for line in script.read_text().splitlines()}
    start = [block.text.strip() for block in _blocks(ROOT / "README.md")][:2]
    assert "pip install" in start[0]
    assert "pytest" in start[1]
    assert set(start) <= lines
    assert script.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", script], check=True)


def test_only_installing_testing_downloading_sweeps_and_clouds_are_not_run() -> None:
    skipped = [block for block in BLOCKS if block.skipped]
    assert skipped[:2] == BLOCKS[:2]
    assert [block.skipped for block in skipped[:2]] == ["installs", "tests"]
    does = {
        "downloads": "raylingvo data prepare ",
        "trains": "raylingvo tune sweep ",
        "clouds": "ray up clusters/gcp.yaml",  # tests/clusters and tests/cluster start others
    }
    assert [block.id for block in skipped[2:] if does[block.skipped or ""] not in block.text] == []
    assert sum("raylingvo tune sweep " in block.text for block in TO_RUN) == 1


def test_the_tutorial_is_run_with_fewer_steps() -> None:
    assert [block.document.name for block in TO_RUN if TUTORIAL_STEPS in block.text] == ["translation.md"]


def test_every_block_is_either_run_or_only_shown() -> None:
    assert {block.language for block in BLOCKS} == RUN | SHOWN
    fences = sum(line.startswith("```") for document in DOCUMENTS for line in document.read_text().splitlines())
    assert fences == 2 * len(BLOCKS)
    assert {*DOCUMENTS, OF_CLUSTERS, ONE_PROGRAM} == {ROOT / "README.md", *(ROOT / "docs").rglob("*.md")}


def test_what_is_only_shown_starts_no_command() -> None:
    for block in BLOCKS:
        assert block.language in RUN or not re.search(r"^(\$ )?raylingvo ", block.text, re.M), block.id


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_the_keys_that_documents_name_exist(document: Path) -> None:
    experiment = config.override(
        registry.get("image.digits.LeNet5"),
        {
            "train.checkpoints.best": {"metric": "test/loss", "mode": "min"},
            "train.early_stop": {"metric": "test/loss", "mode": "min", "window": 1},
        },
    )
    known = config.flatten(experiment)
    others = (
        "lm.shakespeare.CharTransformer",
        "mt.parallel_text.Transformer",
        "mt.xendec.wmt14_en_de.WmtEnDeXEnDec",
    )
    for name in others:
        known |= config.flatten(registry.get(name))
    text = document.read_text().replace(".NAME.", ".test.").replace(".ROLE.", ".trainer.")
    named = re.findall(r"(?:`|--set '?)((?:train|learner|eval|decode|resources|task)\.[a-z_.]+)", text)
    # A dataset of its own makes a new name in `eval`, a task of its own another field.
    added = {"eval.train", "task.width"}
    # Data are about what experiments are made of, results about what came out.
    assert named or document.name in ("data.md", "results.md")
    assert [key for key in named if key not in added and not _is_or_is_in(key, known)] == []


def _is_or_is_in(key: str, known: dict[str, object]) -> bool:
    return any(other == key or other.startswith(f"{key}.") for other in known)


def test_links_lead_to_files() -> None:
    for document in (*DOCUMENTS, ONE_PROGRAM):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_readme_names_all_benchmarks() -> None:
    section = (ROOT / "README.md").read_text().partition("## Benchmarks")[2].partition("\n## ")[0]
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py") if not path.stem.endswith("_task")}
    assert set(re.findall(r"`(\w+)`", section)) - {"RAYLINGVO_TEST_DATA"} == scripts


def test_the_examples_of_ops_print_what_is_shown() -> None:
    text = ONE_PROGRAM.read_text()
    examples = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", text, re.M | re.S)
    assert len(examples) == text.count("```python") > 10
    names: dict[str, object] = {}
    for program, shown in examples:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(program, names)
        assert printed.getvalue() == shown
