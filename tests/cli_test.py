"""The command line: exit statuses, one-line messages, what goes to which stream, and commands on a finished run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, Ended, command_of

import raylingvo
from raylingvo import cli, registry
from raylingvo.errors import RequestError

DIGITS = "image.digits.LeNet5"
# Quick: 20 steps of 16 images; checkpoints at 10 and 20, and a best one to ask for.
SETTINGS = (
    *("--set", "train.max_steps=20", "--set", "train.batch_size=16", "--set", "train.report_every_steps=10"),
    *("--set", "train.snapshots.every_steps=10", "--set", "train.checkpoints.every_steps=10"),
    *("--set", "train.checkpoints.best={metric: test/accuracy, mode: max}"),
)
SECONDS = 500  # far more than any command here takes


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """command(*arguments): runs `raylingvo ARGUMENTS` in this process."""
    return command_of(monkeypatch, capsys)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory and data root, whose modules can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "path", list(sys.path))  # the command adds the current directory
    registry.names()  # all that are built in, before what tests register is kept apart
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    return tmp_path


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting Ray fails the test."""
    import ray

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("ray.init was called")

    monkeypatch.setattr(ray, "init", refuse)


def process(*arguments: object, cwd: Path) -> Ended:
    """`raylingvo ARGUMENTS` as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "raylingvo", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(raylingvo.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """The logdir of a finished run, and how `run --json` ended. Tests leave it as it is."""
    directory = tmp_path_factory.mktemp("finished")
    ended = process("run", DIGITS, "--logdir", "run", *SETTINGS, "--json", cwd=directory)
    assert ended.status == 0, ended.err
    return directory / "run", ended


@pytest.fixture
def logdir(finished: tuple[Path, Ended], tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished[0], tmp_path / "copy")


# -- wrong requests ----------------------------------------------------------------------------------------------------

RUN = ("run", DIGITS, "--logdir", "new")
CONFIG = ("inspect", "config", DIGITS)
WRONG = [
    (("lst",), "No such command 'lst'. Did you mean 'list'? See: raylingvo --help"),
    (("run", DIGITS), "Missing option '--logdir'. See: raylingvo run --help"),
    (("run", DIGITS, "--logdir"), "Option '--logdir' requires an argument. See: raylingvo --help"),
    (("inspect", "model"), "Missing argument 'EXPERIMENT'. See: raylingvo inspect model --help"),
    (("list", "mnits"), "no experiment matches 'mnits'; closest: image.mnist.LeNet5"),
    (("list", "zzz"), "no experiment matches 'zzz'; `raylingvo list` shows what there is"),
    (("run", "--logdir", "new"), "run needs an EXPERIMENT or --config FILE; `raylingvo list` shows what there is"),
    (
        ("run", "image.digits.LeNet", "--logdir", "new"),
        "no experiment 'image.digits.LeNet'; did you mean image.digits.LeNet5 or image.mnist.LeNet5?",
    ),
    (("inspect", "config", "nothing.Like"), "no experiment 'nothing.Like'; `raylingvo list` shows what there is"),
    (
        (*RUN, "--set", "train.max_step=4"),
        "unknown key train.max_step (got '4'); did you mean train.max_steps (an int)?",
    ),
    ((*RUN, "--set", "train.max_steps=abc"), "train.max_steps: expected an int (got 'abc')"),
    ((*CONFIG, "--set", "train.max_steps=0"), "train.max_steps must be >= 1 (got 0)"),
    (
        (*CONFIG, "--set", "train.seed"),
        "expected KEY=VALUE, such as train.batch_size=64 (got 'train.seed')",
    ),
    (
        (*CONFIG, "--set", "eval.test.policy=often"),
        "eval.test.policy: expected one of latest, every, last (got 'often')",
    ),
    (
        (*CONFIG, "--set", "train.dataset=tset"),
        "train.dataset: no dataset 'tset'; the experiment has train, test",
    ),
    (("run", "--config", "no.yaml", "--logdir", "new"), "--config no.yaml: cannot be read (No such file or directory)"),
    (
        ("run", "--config", "text.yaml", "--logdir", "new"),
        "--config text.yaml: expected an Experiment, {field: value, ...} (got 'some text')",
    ),
    ((*RUN[:3], "file/below"), "--logdir file/below: cannot be created (Not a directory)"),
    ((*RUN[:3], "file"), "--logdir file: cannot be created (File exists)"),
    ((*RUN[:3], "."), "--logdir . is not empty and has no config.yaml: it is not the logdir of a run"),
    (
        ("eval", "--logdir", "none"),
        "--logdir none: no run here (none/config.yaml cannot be read: No such file or directory)",
    ),
    (
        ("decode", "--logdir", "none"),
        "--logdir none: no run here (none/config.yaml cannot be read: No such file or directory)",
    ),
    (("runs", "list", "none"), "LOGDIR none does not exist"),
    (("runs", "show", "none"), "LOGDIR none is not a logdir: it has no run.json"),
    (("runs", "compare", "."), "LOGDIR . is not a logdir and holds none: there is no run.json"),
    (("runs", "compare", "--decode", "."), "LOGDIR . is not a logdir and holds none: there is no run.json"),
    (("runs", "compare", ".", "--step", "3"), "runs compare: --dataset, --step and --out go with --decode"),
    (("runs", "plot", "file"), "LOGDIR file is not a directory"),
    (("data", "prepare", "minst"), "no recipe 'minst' to prepare data; closest: mnist"),
    (("data", "prepare", "mnist", "--from", "none"), "--from none does not exist"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), WRONG, ids=lambda value: value[-60:] if isinstance(value, str) else ""
)
def test_a_wrong_request_exits_2_with_one_line_that_helps(
    command: Command, here: Path, no_ray: None, arguments: tuple[str, ...], message: str
) -> None:
    (here / "file").touch()
    (here / "text.yaml").write_text("some text")
    assert command(*arguments) == (2, "", f"raylingvo: {message}\n")
    assert not (here / "new").exists()


@pytest.mark.parametrize(
    "arguments", [("run", "image.mnist.LeNet5", "--logdir", "new"), ("inspect", "datasets", "image.mnist.LeNet5")]
)
def test_missing_data_are_named_with_the_command_that_makes_them(
    command: Command, here: Path, no_ray: None, arguments: tuple[str, ...]
) -> None:
    message = f"mnist/train.parquet not found under RAYLINGVO_DATA={here}/data; run: raylingvo data prepare mnist"
    assert command(*arguments) == (2, "", f"raylingvo: {message}\n")


def test_a_wrong_request_ends_a_process_in_the_same_way(tmp_path: Path) -> None:
    ended = process("run", "no.Such", "--logdir", "x", "--json", cwd=tmp_path)
    assert ended == (2, "", "raylingvo: no experiment 'no.Such'; `raylingvo list` shows what there is\n")


@pytest.mark.ray
@pytest.mark.slow
def test_too_large_a_request_leaves_no_trace_in_the_logdir(tmp_path: Path) -> None:
    ended = process("run", DIGITS, "--logdir", "new", "--set", "resources.trainer.num_cpus=1000", cwd=tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert "the roles ask for 1000 CPU" in ended.err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]


# -- one's own experiments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "import no_such_module",
            "own_0 cannot be imported: ModuleNotFoundError: No module named 'no_such_module' ({}:1)",
        ),
        ("x = (", "own_1 cannot be imported: SyntaxError: '(' was never closed (own_1.py, line 1)"),
        ("return 1 / 0", "experiment 'own_2.Mine' cannot be made: ZeroDivisionError: division by zero ({}:4)"),
        (
            f"return rl.override(rl.get('{DIGITS}'), {{'train.seed': -1}})",
            "experiment 'own_3.Mine' cannot be made: train.seed must be >= 0 (got -1) ({}:4)",
        ),
        ("return 3", "own_4.mine must return an Experiment (got int)"),
    ],
)
def test_a_mistake_in_the_users_module_is_named_with_its_line(
    command: Command, here: Path, request: pytest.FixtureRequest, body: str, message: str
) -> None:
    module = message.split("own_")[1][0]
    file = here / f"own_{module}.py"
    if body.startswith("return"):
        body = f"import raylingvo as rl\n@rl.register('own_{module}.Mine')\ndef mine():\n    {body}"
    file.write_text(body + "\n")
    assert command("inspect", "config", f"own_{module}.Mine") == (2, "", f"raylingvo: {message.format(file)}\n")


def test_an_experiment_in_the_current_directory_is_found(command: Command, here: Path) -> None:
    (here / "found_here.py").write_text(
        "import raylingvo as rl\n\n\n"
        "@rl.register('found_here.Small')\n"
        "def small():\n"
        f"    return rl.override(rl.get('{DIGITS}'), {{'train.max_steps': 7}})\n"
    )
    shown = command("inspect", "config", "found_here.Small", "--json").json
    assert shown["experiment"] == "found_here.Small"
    assert shown["config"]["train.max_steps"] == 7


# -- what it shows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program", ["import raylingvo, raylingvo.config, raylingvo.errors", "from raylingvo.cli import main; main()"]
)
def test_help_and_import_load_nothing_heavy(program: str, tmp_path: Path) -> None:
    code = (
        "import atexit, sys\n"
        "heavy = ('jax', 'ray', 'tensorflow', 'flax', 'optax', 'grain', 'numpy', 'sklearn')\n"
        "atexit.register(lambda: print('loaded:', *(name for name in heavy if name in sys.modules)))\n"
        f"sys.argv = ['raylingvo', '--help']\n{program}"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(raylingvo.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_no_command_shows_the_help(command: Command) -> None:
    ended = command()
    assert ended.status == 2
    assert "Usage: raylingvo" in ended.out
    assert all(name in ended.out for name in ("list", "inspect", "run", "eval", "decode", "data", "runs"))


def test_list(command: Command, here: Path) -> None:
    ended = command("list", "digits")
    assert ended.status == 0
    assert ended.out.split(maxsplit=1)[0] == DIGITS
    found = [found["name"] for found in command("list", "image", "--json").json["experiments"]]
    assert found == [DIGITS, "image.mnist.LeNet5"]
    everything = {found["name"] for found in command("list", "--json").json["experiments"]}
    assert everything == {path.stem for path in (Path(__file__).parent / "golden").glob("*.yaml")}
    assert command("list", "IMAGE.*LeNet5").out.count("\n") == 2


def test_inspect(command: Command, here: Path) -> None:
    from raylingvo import config
    from raylingvo.experiment import Experiment

    dumped = command("inspect", "config", DIGITS, "--set", "train.seed=3").out
    assert config.load(dumped, Experiment) == config.override(registry.get(DIGITS), {"train.seed": 3})

    assert command("inspect", "model", DIGITS).out.splitlines()[-1] == "total: 763,810"
    assert command("inspect", "model", DIGITS, "--json").json["num_params"] == 763_810

    rows = command("inspect", "datasets", DIGITS, "--json").json["datasets"]
    assert [(row["name"], row["num_examples"], row["used_by"]) for row in rows] == [
        ("train", 1437, ["train"]),
        ("test", 360, ["eval", "decode"]),
    ]
    assert "train: 1,437 examples (Digits; train): image uint8[28, 28, 1]" in command("inspect", "datasets", DIGITS).out


# -- how a run ends ----------------------------------------------------------------------------------------------------

RESULT = {
    "run": "LeNet5-1",
    "experiment": DIGITS,
    "status": "failed",
    "stop_reason": "the Trainer failed",
    "step": 3,
    "train": {},
    "eval": {"test": {}},
    "decode": {},
}


def _ends_with(monkeypatch: pytest.MonkeyPatch, end: Exception | KeyboardInterrupt | dict[str, Any]) -> None:
    def run(*_: Any, **__: Any) -> dict[str, Any]:
        if isinstance(end, dict):
            return end
        raise end

    monkeypatch.setattr("raylingvo.actors.run.run", run)


def test_a_failed_run_exits_1_and_says_where(command: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raylingvo.actors.run import RunFailed

    _ends_with(monkeypatch, RunFailed("the Trainer failed: boom", RESULT, "in step.py, line 3"))
    ended = command(*RUN)
    assert ended.status == 1
    assert "failed at step 3 (the Trainer failed)" in ended.out
    assert ended.err == "in step.py, line 3\nraylingvo: the Trainer failed: boom\n"
    assert command(*RUN, "--json").json == RESULT


def test_an_interrupted_run_exits_130(command: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _ends_with(monkeypatch, {**RESULT, "status": "interrupted", "stop_reason": "SIGINT"})
    ended = command(*RUN)
    assert ended.status == 130
    assert "interrupted at step 3 (SIGINT)" in ended.out
    _ends_with(monkeypatch, KeyboardInterrupt())
    assert command(*RUN).status == 130


def test_a_defect_of_the_program_is_not_taken_for_a_wrong_request(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _ends_with(monkeypatch, ZeroDivisionError("boom"))
    monkeypatch.setattr(sys, "argv", ["raylingvo", *RUN])
    with pytest.raises(ZeroDivisionError, match="boom"):
        cli.main()


# -- a finished run ----------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_run_prints_one_json_object_and_all_else_to_stderr(finished: tuple[Path, Ended]) -> None:
    logdir, ended = finished
    result = ended.json
    assert result["status"] == "finished"
    assert (result["experiment"], result["step"], result["stop_reason"]) == (DIGITS, 20, "reached max_steps 20")
    assert result["train"]["loss"] > 0
    assert result["eval"]["test"]["step"] == result["decode"]["test"]["step"] == 20
    assert result["eval"]["test"]["accuracy"] == pytest.approx(result["decode"]["test"]["correct_top1"])
    assert result["decode"]["test"]["num_samples"] == 360
    assert min(result[name] for name in ("steps_per_second", "examples_per_second", "first_step_seconds")) > 0
    assert result["logdir"] == str(logdir)
    assert f"run {result['run']}: {DIGITS}, dashboard " in ended.err
    assert "eval test @ 20: accuracy " in ended.err


@pytest.mark.ray
def test_run_json_says_what_ran(finished: tuple[Path, Ended]) -> None:
    logdir, ended = finished
    info = json.loads((logdir / "run.json").read_text())
    assert info["result"] == ended.json
    assert (info["id"], info["experiment"], info["status"], info["step"]) == (ended.json["run"], DIGITS, "finished", 20)
    assert info["command"][1:4] == ["run", DIGITS, "--logdir"]
    assert info["versions"].keys() >= {"raylingvo", "python", "ray", "jax", "flax", "optax", "numpy"}
    assert info["started"] < info["ended"]
    assert info.keys() >= {"seed", "stop_reason", "git_sha", "hosts", "executable", "working_directory", "dashboard"}


@pytest.mark.ray
def test_the_same_command_again_gives_the_stored_result(
    command: Command, logdir: Path, no_ray: None, finished: tuple[Path, Ended]
) -> None:
    before = (logdir / "run.json").read_text()
    assert command("run", DIGITS, "--logdir", logdir, *SETTINGS, "--json").json == finished[1].json
    assert "finished at step 20" in command("run", DIGITS, "--logdir", logdir, *SETTINGS).out
    assert (logdir / "run.json").read_text() == before


@pytest.mark.ray
def test_its_config_file_rebuilds_the_identical_experiment(command: Command, logdir: Path, no_ray: None) -> None:
    # Another experiment would be refused.
    ended = command("run", "--config", logdir / "config.yaml", "--logdir", logdir)
    assert ended.status == 0
    other = command("run", "image.mnist.LeNet5", "--config", logdir / "config.yaml", "--logdir", logdir)
    message = f"--config {logdir}/config.yaml is of {DIGITS}, not of image.mnist.LeNet5"
    assert other == (2, "", f"raylingvo: {message}\n")


@pytest.mark.ray
def test_another_experiment_is_refused_and_the_differences_shown(command: Command, logdir: Path, no_ray: None) -> None:
    changed = ("--set", "train.max_steps=30", "--set", "learner.learning_rate=0.5")
    ended = command("run", DIGITS, "--logdir", logdir, *SETTINGS, *changed)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.splitlines() == [
        f"raylingvo: --logdir {logdir} belongs to a run of another experiment; use another logdir, or undo:",
        "  learner.learning_rate: 0.001 -> 0.5",
        "  train.max_steps: 20 -> 30",
    ]


@pytest.mark.ray
def test_a_logdir_in_use_is_refused(command: Command, logdir: Path, no_ray: None) -> None:
    from raylingvo.actors.logdir import hold

    message = f"raylingvo: --logdir {logdir}: another raylingvo process is running in it\n"
    with hold(logdir):
        assert command("run", DIGITS, "--logdir", logdir, *SETTINGS) == (2, "", message)
        assert command("eval", "--logdir", logdir) == (2, "", message)


@pytest.mark.ray
def test_eval_gives_the_runs_own_numbers(
    command: Command, logdir: Path, no_ray: None, finished: tuple[Path, Ended]
) -> None:
    result = command("eval", "--logdir", logdir, "--json").json
    assert result["experiment"] == DIGITS
    mine, the_runs = result["eval"]["test"], finished[1].json["eval"]["test"]
    for name in ("step", "accuracy", "loss", "num_preds"):
        assert mine[name] == pytest.approx(the_runs[name]), name


@pytest.mark.ray
def test_eval_takes_any_checkpoint_and_any_dataset(command: Command, logdir: Path, no_ray: None) -> None:
    every = command(
        "eval", "--logdir", logdir, "--dataset", "train", "--dataset", "test", "--checkpoint", "all", "--json"
    )
    assert {name: [r["step"] for r in records] for name, records in every.json["all"].items()} == {
        "train": [10, 20],
        "test": [10, 20],
    }
    scores = {record["step"]: record["accuracy"] for record in every.json["all"]["test"]}
    best = command("eval", "--logdir", logdir, "--checkpoint", "best", "--json").json["eval"]["test"]
    assert best["step"] == max(scores, key=lambda step: (scores[step], -step))
    assert command("eval", "--logdir", logdir, "--checkpoint", 10).out.startswith("eval test @ 10: accuracy ")
    assert (logdir / "eval_train" / "score-00000010.txt").exists()


@pytest.mark.ray
def test_decode_writes_a_line_for_each_example(command: Command, logdir: Path, no_ray: None) -> None:
    ended = command("decode", "--logdir", logdir, "--checkpoint", 10)
    assert (ended.status, ended.out.split(":")[0]) == (0, "decode test @ 10")
    lines = (logdir / "decode_test" / "decoder_out-00000010.jsonl").read_text().splitlines()
    outputs = [json.loads(line) for line in lines]
    assert [output["id"] for output in outputs] == [str(5 * i) for i in range(360)]  # every fifth image is for tests
    correct = sum(output["prediction"] == output["label"] for output in outputs) / 360
    record = json.loads((logdir / "decode_test" / "metrics.jsonl").read_text().splitlines()[0])
    assert (record["step"], record["correct_top1"]) == (10, pytest.approx(correct))


@pytest.mark.ray
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "--dataset", "tset"), f"no dataset 'tset' in {DIGITS}; it has train, test"),
        (
            ("decode", "--checkpoint", "15"),
            "no checkpoint '15' in {}/train/checkpoints; it has 10, 20, latest, best, all",
        ),
        (("decode", "--input", "no.txt"), "--input no.txt: cannot be read (No such file or directory)"),
        (("decode", "--input", "-", "--dataset", "test"), "decode: one of --input and --dataset, not both"),
    ],
)
def test_eval_and_decode_refuse_what_does_not_exist(
    command: Command, logdir: Path, no_ray: None, arguments: tuple[str, ...], message: str
) -> None:
    assert command(*arguments, "--logdir", logdir) == (2, "", f"raylingvo: {message.format(logdir)}\n")


@pytest.mark.ray
def test_runs_shows_and_compares_logdirs(command: Command, logdir: Path, finished: tuple[Path, Ended]) -> None:
    name = finished[1].json["run"]
    config = logdir / "config.yaml"
    config.write_text(config.read_text().replace("learning_rate: 0.001", "learning_rate: 0.5"))
    both = (finished[0], logdir)

    assert [row["run"] for row in command("runs", "list", *both, "--json").json["runs"]] == [name, name]
    assert f"{name}  {DIGITS}" in command("runs", "list", logdir).out
    assert command("runs", "show", logdir, "--json").json["metrics"]["eval_test"]["accuracy"]["step"] == 20
    shown = command("runs", "show", logdir).out
    assert "reached max_steps 20" in shown
    assert max(map(len, shown.splitlines())) < 500  # a line for each fact, not the whole result on one
    compared = command("runs", "compare", *both, "--json").json
    assert compared["config"] == {"learner.learning_rate": {"run": 0.001, "copy": 0.5}}
    assert "learner.learning_rate" in command("runs", "compare", *both).out


@pytest.mark.ray
def test_runs_compare_writes_a_page_of_outputs(
    command: Command, logdir: Path, here: Path, finished: tuple[Path, Ended]
) -> None:
    both = ("runs", "compare", "--decode", finished[0], logdir)
    found = command(*both, "--out", "new/page.html", "--json").json
    assert (found["out"], found["dataset"], found["examples"]) == ("new/page.html", "test", 360)
    assert [column["name"] for column in found["columns"]] == ["run @ 20", "copy @ 20"]
    assert (here / "new/page.html").read_text().count("<article") == 360
    assert command(*both) == (0, "decode.html\n", "")
    unknown = f"raylingvo: --step 15: no outputs of test in {logdir}; there are of steps 20\n"
    assert command("runs", "compare", "--decode", logdir, "--step", 15) == (2, "", unknown)


@pytest.mark.ray
def test_runs_plot_draws_a_png(command: Command, logdir: Path) -> None:
    out = logdir.parent / "plots" / "accuracy.png"
    ended = command("runs", "plot", logdir, "--out", out, "--metric", "test/accuracy")
    assert ended == (0, f"{out}\n", "")
    assert out.read_bytes().startswith(b"\x89PNG")
    wrong = command("runs", "plot", logdir, "--metric", "acuracy")
    assert wrong.status == 2
    assert "no run has 'acuracy'; closest: accuracy" in wrong.err


def test_rl_names_the_same_error() -> None:
    assert raylingvo.RequestError is RequestError
