"""`raylingvo tune sweep` without a sweep: wrong requests, what a file and the command line say together, documents."""

from __future__ import annotations

import builtins
import re
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from command_line import Command, command_of

from raylingvo import registry

ROOT = Path(__file__).parents[1]
DIGITS = "image.digits.LeNet5"
RATE = ("--param", "learner.learning_rate=loguniform(1e-4,1e-1)")
ACCURACY = ("--metric", "test/accuracy", "--mode", "max")


class Started(Exception):
    """The request is right: the sweep would start now."""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """command(*arguments): runs `raylingvo tune sweep ARGUMENTS` in this process."""
    return command_of(monkeypatch, capsys, "tune", "sweep")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory. Starting Ray there fails the test."""
    import ray

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the command adds the current directory
    registry.names()
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("ray.init was called"))
    return tmp_path


def refusal(message: str) -> tuple[int, str, str]:
    return 2, "", f"raylingvo: {message}\n"


# -- wrong requests ----------------------------------------------------------------------------------------------------

SWEEP = (DIGITS, "--logdir", "new")
WRONG = [
    ((DIGITS, *RATE, *ACCURACY), "Missing option '--logdir'. See: raylingvo tune sweep --help"),
    ((*SWEEP, *RATE, "--mode", "max"), "a sweep needs --metric DATASET/NAME"),
    ((*SWEEP, *RATE, "--metric", "test/accuracy"), "a sweep needs --mode min|max"),
    (
        (*SWEEP, *ACCURACY),
        "a sweep needs at least one --param KEY=SPACE, such as learner.learning_rate=loguniform(1e-4,1e-1)",
    ),
    (
        ("image.digits.LeNet", *SWEEP[1:], *RATE, *ACCURACY),
        "no experiment 'image.digits.LeNet'; did you mean image.digits.LeNet5 or image.mnist.LeNet5?",
    ),
    (
        (*SWEEP, *ACCURACY, "--param", "learner.learning_rte=uniform(0,1)"),
        "--param learner.learning_rte: unknown key learner.learning_rte (got 0.0); "
        "did you mean learner.learning_rate (a finite float)?",
    ),
    (
        (*SWEEP, *ACCURACY, "--param", "learner.learning_rate=loguniforn(1e-4,1e-1)"),
        "--param learner.learning_rate: no space 'loguniforn'; did you mean loguniform or uniform or quniform? "
        "(spaces: uniform, loguniform, quniform, randint, normal, choice, grid)",
    ),
    (
        (*SWEEP, *ACCURACY, "--param", "learner.learning_rate=0.1"),
        "--param learner.learning_rate: expected a space, such as loguniform(1e-4, 1e-1), choice(adam, sgd) or "
        "grid(1, 2) (got '0.1'; spaces: uniform, loguniform, quniform, randint, normal, choice, grid)",
    ),
    (
        (*SWEEP, *ACCURACY, "--param", "train.batch_size=uniform(8,64)"),
        "--param train.batch_size: expected an int (got 8.0); uniform(8, 64) gives floats: use randint or quniform",
    ),
    (
        (*SWEEP, *ACCURACY, "--param", "learner.learning_rate"),
        "expected KEY=VALUE, such as train.batch_size=64 (got 'learner.learning_rate')",
    ),
    (
        (*SWEEP, *RATE, "--mode", "max", "--metric", "accuracy"),
        "--metric must be DATASET/NAME, such as test/accuracy (got 'accuracy')",
    ),
    (
        (*SWEEP, *RATE, "--mode", "max", "--metric", "tset/accuracy"),
        "--metric tset/accuracy: 'tset' is neither evaluated nor decoded; eval has test, decode has test",
    ),
    ((*SWEEP, *RATE, "--mode", "most", "--metric", "test/accuracy"), "--mode must be min or max (got 'most')"),
    (
        (*SWEEP, *RATE, *ACCURACY, "--scheduler", "ashes"),
        "--scheduler: expected one of fifo, asha, hyperband, median, pbt (got 'ashes')",
    ),
    (
        (*SWEEP, *RATE, *ACCURACY, "--search", "bayes"),
        "--search: expected one of random, grid, optuna (got 'bayes')",
    ),
    ((*SWEEP, *RATE, *ACCURACY, "--samples", "0"), "--samples must be >= 1 (got 0)"),
    (
        (*SWEEP, *RATE, *ACCURACY, "--search", "grid"),
        "--search grid: loguniform(0.0001, 0.1) of learner.learning_rate has no list of values; "
        "use grid(...), choice, randint or quniform",
    ),
    (
        (*SWEEP, *ACCURACY, "--param", "train.seed=choice(1,2)", "--scheduler", "pbt", "--max-steps", "999"),
        "--scheduler pbt changes values while trials run, and train.seed cannot change then; "
        "keys may begin with learner., task., train.vn_, train.ema_",
    ),
    (
        (*SWEEP, *RATE, *ACCURACY, "--scheduler", "asha", "--max-steps", "5"),
        "--scheduler asha: the first decision would fall after 50 steps, a trial has 5; "
        "--set train.snapshots.every_steps=N gives earlier metrics, --grace-steps N earlier decisions",
    ),
    ((*SWEEP, *RATE, *ACCURACY, "--set", "train.max_steps=none"), "train.max_steps: expected an int (got 'none')"),
    (
        (*SWEEP, *RATE, *ACCURACY, "--resources", "trainer.num_cpu=1"),
        "unknown key resources.trainer.num_cpu (got '1'); did you mean resources.trainer.num_cpus (a finite float) "
        "or resources.trainer.num_gpus (a finite float) or resources.store.num_cpus (a finite float)?",
    ),
    (
        (DIGITS, "--logdir", "file", *RATE, *ACCURACY),
        "--logdir {here}/file: cannot be created (File exists)",
    ),
    (
        (*SWEEP, "--config", "none.yaml"),
        "--config none.yaml: cannot be read (No such file or directory)",
    ),
    (
        (*SWEEP, "--config", "file"),
        "--config file: expected keys and values (experiment, set, params, metric, mode, samples, scheduler, search, "
        "seed, max_steps, grace_steps, reduction_factor, concurrency, max_failures, resources)",
    ),
    ((*SWEEP, "--config", "key.yaml"), "--config key.yaml: no key 'sample'; did you mean samples?"),
    (
        (*SWEEP, "--config", "list.yaml"),
        "--config list.yaml: params must have keys and values (got ['learner.learning_rate'])",
    ),
    (
        (*SWEEP, *ACCURACY, "--config", "space.yaml"),
        "--param learner.learning_rate: 'uniform(1, 0)': low must be < high (got 1.0, 0.0)",
    ),
]
FILES = {
    "file": "",
    "key.yaml": "sample: 3\n",
    "list.yaml": "params: [learner.learning_rate]\n",
    "space.yaml": "params: {learner.learning_rate: 'uniform(1, 0)'}\n",
}


@pytest.mark.parametrize(
    ("arguments", "message"), WRONG, ids=lambda value: value[-60:] if isinstance(value, str) else ""
)
def test_a_wrong_request_exits_2_with_one_line_that_helps(
    command: Command, here: Path, arguments: tuple[str, ...], message: str
) -> None:
    for name, text in FILES.items():
        (here / name).write_text(text)
    assert command(*arguments) == refusal(message.format(here=here))
    assert not (here / "new").exists()


@pytest.mark.parametrize("content", [b"a: [\n", b"\xff\xfe\xff"])
def test_a_file_that_is_not_yaml_is_refused_in_one_line(command: Command, here: Path, content: bytes) -> None:
    (here / "sweep.yaml").write_bytes(content)
    ended = command(*SWEEP, "--config", "sweep.yaml")
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith("raylingvo: --config sweep.yaml: is not YAML (")


def test_without_optuna_the_command_says_how_to_get_it(
    command: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "optuna":
            raise ModuleNotFoundError("No module named 'optuna'")
        return found(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    ended = command(*SWEEP, *RATE, *ACCURACY, "--search", "optuna")
    assert ended == refusal("--search optuna: Optuna is not installed; run: pip install optuna")


def test_the_logdir_of_a_run_is_refused(command: Command, here: Path) -> None:
    (here / "run.json").write_text("{}")
    ended = command(DIGITS, "--logdir", ".", *RATE, *ACCURACY)
    assert ended == refusal(f"--logdir {here} is the logdir of a run, not of a sweep")


# -- what a file says, and what the command line -----------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `sweep` has been called with; instead of a sweep there is `Started`."""
    calls: dict[str, Any] = {}

    def sweep(experiment: Any, space: Any, **options: Any) -> NoReturn:
        calls.update(experiment=experiment, space=space, **options)
        raise Started

    monkeypatch.setattr("raylingvo.tune.sweep.sweep", sweep)
    return calls


def test_the_command_line_counts_more_than_the_file(command: Command, here: Path, asked: dict[str, Any]) -> None:
    (here / "sweep.yaml").write_text(
        f"experiment: {DIGITS}\nmetric: test/loss\nmode: min\nsamples: 3\nseed: 5\nresources: {{trainer.num_cpus: 2}}\n"
        "params: {learner.learning_rate: 'uniform(0, 1)', train.batch_size: [8, 16]}\n"
        "set: {train.max_steps: 7, train.seed: 4}\n"
    )
    with pytest.raises(Started):
        command(
            *("--config", "sweep.yaml", "--logdir", "new", "--samples", "9", "--set", "train.seed=6"),
            *("--param", "learner.learning_rate=normal(1,2)", "--resources", "trainer.num_gpus=0.5", "--retry-failed"),
        )
    experiment = asked.pop("experiment")
    assert (experiment.name, experiment.train.max_steps, experiment.train.seed) == (DIGITS, 7, 6)
    assert asked == {
        "space": {"learner.learning_rate": "normal(1,2)", "train.batch_size": [8, 16]},
        "logdir": Path("new"),
        "address": None,
        "retry_failed": True,
        "metric": "test/loss",
        "mode": "min",
        "samples": 9,
        "seed": 5,
        "resources": {"trainer.num_cpus": 2, "trainer.num_gpus": "0.5"},
    }


# -- what documents show and tests/docs_test.py does not run -----------------------------------------------------------


def shown(document: str) -> list[str]:
    text = (ROOT / document).read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line.startswith("raylingvo tune sweep ")]


SHOWN = [line for document in ("README.md", "docs/tune.md") for line in shown(document)]


@pytest.mark.parametrize("line", SHOWN)
def test_a_sweep_that_documents_show_would_start(
    command: Command, here: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    def hold(_: Path) -> NoReturn:
        raise Started

    (file,) = re.findall(r"^```text\n# sweep.yaml\n(.*?)^```$", (ROOT / "docs/tune.md").read_text(), re.M | re.S)
    (here / "sweep.yaml").write_text(file)
    monkeypatch.setattr("raylingvo.tune.sweep.hold", hold)
    with pytest.raises(Started):
        command(*shlex.split(line)[3:])


def test_documents_show_sweeps() -> None:
    assert len(SHOWN) >= 4
