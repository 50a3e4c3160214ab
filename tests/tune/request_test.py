"""A sweep's request: what is refused before anything starts and in which words, and what follows from the defaults."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import toy

from raylingvo import config
from raylingvo.errors import RequestError
from raylingvo.experiment import Best, Checkpoints, Snapshots
from raylingvo.tune.request import Options, make_options, make_request, read_file
from raylingvo.tune.spaces import Choice, Grid, LogUniform, RandInt, Uniform

RATE = "learner.learning_rate"


def request(params=None, *, experiment=None, metric="test/loss", mode="min", **options):
    params = {RATE: "loguniform(1e-4, 1e-1)"} if params is None else params
    experiment = toy.experiment() if experiment is None else experiment
    return make_request(experiment, params, metric=metric, mode=mode, options=Options(**options))


def refused(*args, **kwargs):
    with pytest.raises(RequestError) as caught:
        request(*args, **kwargs)
    return str(caught.value)


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"scheduler": "ashaa"},
            "scheduler must be one of fifo, asha, hyperband, median, pbt (got 'ashaa'); did you mean asha?",
        ),
        ({"search": "zzz"}, "search must be one of random, grid, optuna (got 'zzz')"),
        ({"samples": 0}, "samples must be >= 1 (got 0)"),
        ({"max_steps": 0}, "max_steps must be >= 1 (got 0)"),
        ({"grace_steps": 0}, "grace_steps must be >= 1 (got 0)"),
        ({"concurrency": 0}, "concurrency must be >= 1 (got 0)"),
        ({"max_failures": -1}, "max_failures must be >= 0 (got -1)"),
        ({"seed": -1}, "seed must be >= 0 (got -1)"),
        ({"reduction_factor": 1}, "reduction_factor must be >= 2 (got 1)"),
    ],
)
def test_options_that_cannot_be(fields, message):
    with pytest.raises(ValueError) as caught:
        Options(**fields)
    assert str(caught.value) == message


def test_the_least_options_that_can_be():
    least: dict[str, Any] = {
        "samples": 1,
        "max_steps": 1,
        "grace_steps": 1,
        "concurrency": 1,
        "max_failures": 0,
        "seed": 0,
    }
    Options(**least, reduction_factor=2)


def test_options_are_values():
    given = {"trainer.num_cpus": "2"}
    options = Options(resources=given)
    given["trainer.num_cpus"] = "3"
    assert options == Options(resources={"trainer.num_cpus": "2"}) != Options()
    assert hash(options) == hash(Options(resources={"trainer.num_cpus": "2"}))


def test_options_of_texts_and_of_values_are_the_same():
    options = Options(samples=3, scheduler="asha", max_failures=0, resources={"trainer.num_cpus": "0.5", "hosts": "1"})
    texts = {"samples": "3", "scheduler": "asha", "max_failures": "0", "concurrency": None}
    assert make_options({**texts, "resources": {"trainer.num_cpus": "0.5", "hosts": "1"}}) == options
    values = {"samples": 3, "scheduler": "asha", "max_failures": 0}
    assert make_options({**values, "resources": {"trainer.num_cpus": 0.5, "hosts": 1}}) == options
    assert make_options({}) == make_options(dict.fromkeys(["samples", "scheduler", "seed", "resources"])) == Options()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scheduler": "ashaa"}, "--scheduler: expected one of fifo, asha, hyperband, median, pbt (got 'ashaa')"),
        ({"samples": "few"}, "--samples: expected an int or null (got 'few')"),
        ({"samples": 0}, "--samples must be >= 1 (got 0)"),
        ({"samles": 3}, "unknown key samles (got 3); did you mean samples (an int or null)?"),
    ],
)
def test_options_that_are_refused_in_a_line(given, message):
    with pytest.raises(RequestError) as caught:
        make_options(given)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["max-steps", "grace-steps", "reduction-factor", "max-failures"])
def test_options_are_named_as_they_are_typed(name):
    with pytest.raises(RequestError, match=f"^--{name}"):
        make_options({name.replace("-", "_"): -1})


# -- what is refused --------------------------------------------------------------------------------------------------


def test_the_mode_is_checked():
    assert refused(mode="least") == "--mode must be min or max (got 'least')"


def test_there_must_be_a_parameter():
    assert refused({}) == (
        "a sweep needs at least one --param KEY=SPACE, such as learner.learning_rate=loguniform(1e-4,1e-1)"
    )


@pytest.mark.parametrize("metric", ["loss", "test/", "/loss", ""])
def test_a_metric_has_two_parts(metric):
    assert refused(metric=metric) == f"--metric must be DATASET/NAME, such as test/accuracy (got {metric!r})"


def test_a_metric_is_of_what_is_evaluated_or_decoded():
    message = "--metric train/loss: 'train' is neither evaluated nor decoded; eval has {}, decode has {}"
    assert refused(metric="train/loss") == message.format("test", "test")
    experiment = toy.experiment()
    without_eval = dataclasses.replace(experiment, eval={})
    without_decode = dataclasses.replace(experiment, decode={})
    assert refused(metric="train/loss", experiment=without_eval) == message.format("none", "test")
    assert refused(metric="train/loss", experiment=without_decode) == message.format("test", "none")
    for one in (without_eval, without_decode):
        assert request(metric="test/any/thing", experiment=one).metric == "test/any/thing"


@pytest.mark.parametrize(
    ("key", "space", "message"),
    [
        ("learner.rate", "uniform(0, 1)", r"--param learner\.rate: unknown key learner\.rate"),
        (RATE, "unifrm(0, 1)", r"--param learner\.learning_rate: no space 'unifrm'; did you mean uniform"),
        (RATE, "uniform(-2, -1)", r"--param learner\.learning_rate must be "),
        ("task.width", "uniform(1, 5)", r"--param task\.width: .*use randint"),
    ],
)
def test_a_wrong_space_is_named(key, space, message):
    with pytest.raises(RequestError, match=f"^{message}"):
        request({key: space})


@pytest.mark.parametrize(
    ("key", "space"),
    [
        ("name", "choice(a, b)"),
        ("train.max_steps", "randint(3, 9)"),
        ("train.checkpoints.keep_last", "randint(1, 3)"),
        ("train.checkpoints.every_steps", "choice(5, 7)"),
        ("resources.hosts", "choice(1, 2)"),
        ("resources.trainer.num_cpus", "uniform(0, 1)"),
        ("eval.test.batch_size", "randint(3, 9)"),
        ("decode.test.batch_size", "randint(3, 9)"),
    ],
)
def test_what_all_trials_have_alike_is_no_parameter(key, space):
    assert refused({RATE: "uniform(0.1, 1)", key: space}) == (
        f"--param {key}: all trials have the same; see --set, --max-steps, --resources"
    )


def test_wrong_resources_are_named():
    assert refused(resources={"trainr.num_cpus": "1"}).startswith("unknown key resources.trainr.num_cpus (got '1')")


def test_a_grid_search_has_no_samples():
    params = {"task.width": "grid(2, 4)"}
    assert (
        refused(params, search="grid", samples=2) == "--search grid has each combination once, and no --samples (got 2)"
    )
    assert request(params, search="grid", samples=1).samples == 1


def test_the_first_decision_must_come_before_the_end():
    assert refused(scheduler="asha", grace_steps=13) == (
        "--scheduler asha: the first decision would fall after 13 steps, a trial has 12; "
        "--set train.snapshots.every_steps=N gives earlier metrics, --grace-steps N earlier decisions"
    )
    rare = toy.experiment(snapshots=Snapshots(every_steps=100))
    assert "median: the first decision would fall after 100 steps" in refused(scheduler="median", experiment=rare)
    assert request(scheduler="asha", grace_steps=12).grace_steps == 12


def test_an_option_that_means_nothing_is_refused():
    assert (
        refused(grace_steps=3)
        == "--grace-steps means nothing to --scheduler fifo; it is of asha, hyperband, median, pbt"
    )
    assert refused(scheduler="median", reduction_factor=2) == (
        "--reduction-factor means nothing to --scheduler median; it is of asha, hyperband"
    )


def test_what_has_all_trials_at_once_learns_from_none():
    assert refused({"task.dropout": "choice(0.1, 0.2)"}, scheduler="hyperband", search="optuna") == (
        "--scheduler hyperband needs all trials before the first begins: there is nothing for --search optuna to learn "
        "from; use --scheduler asha"
    )


# -- population based training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", ["grid", "optuna"])
def test_a_population_is_drawn(search):
    params = {"task.dropout": "choice(0.1, 0.2)"}
    assert refused(params, scheduler="pbt", search=search) == (
        f"--scheduler pbt goes with --search random (got {search})"
    )


def test_a_trial_of_a_population_has_one_host():
    message = "--scheduler pbt: a trial must have one host (got resources.hosts=2)"
    assert refused(scheduler="pbt", resources={"hosts": "2"}) == message
    experiment = config.override(toy.experiment(), {"resources.hosts": 2})
    assert refused(scheduler="pbt", experiment=experiment) == message
    assert request(scheduler="asha", experiment=experiment).experiment.resources.hosts == 2


def test_a_population_varies_what_can_change():
    params = {RATE: "uniform(0.1, 1)", "train.batch_size": "randint(1, 9)"}
    assert refused(params, scheduler="pbt") == (
        "--scheduler pbt changes values while trials run, and train.batch_size cannot change then; "
        "keys may begin with learner., task., train.vn_, train.ema_"
    )
    params = {
        RATE: "uniform(0.1, 1)",
        "task.dropout": "uniform(0, 0.5)",
        "train.vn_std": "uniform(0, 0.1)",
        "train.ema_decay": "uniform(0.9, 0.99)",
    }
    assert list(request(params, scheduler="pbt").space) == list(params)


# -- what follows -----------------------------------------------------------------------------------------------------


def test_spaces_may_be_texts_lists_or_spaces():
    params = {
        RATE: LogUniform(1e-4, 1e-1),
        "task.width": [2, 4],
        "task.dropout": "grid(0.1, 0.2)",
        "train.seed": "randint(0, 3)",
    }
    assert request(params).space == {
        RATE: LogUniform(1e-4, 1e-1),
        "task.width": Choice((2, 4)),
        "task.dropout": Grid((0.1, 0.2)),
        "train.seed": RandInt(0, 3),
    }
    # Typed by the experiment, wherever they come from.
    assert request({"task.width": Choice(("2", "4"))}).space == {"task.width": Choice((2, 4))}


def test_how_many_samples_there_are_by_default():
    grid, drawn = {"task.width": "grid(2, 4)"}, {RATE: "uniform(0.1, 1)"}
    assert request(drawn).samples == 10
    assert request(grid | drawn).samples == 1
    assert request({"task.width": "choice(2, 4)"}, search="grid").samples == 1
    assert request(grid | drawn, samples=7).samples == request(drawn, samples=7).samples == 7


@pytest.mark.parametrize(
    ("max_steps", "every", "grace"),
    [(900, 10, 100), (900, 30, 120), (900, 100, 100), (901, 1, 101), (5, 1, 1), (12, 3, 3), (900, 900, 900)],
)
def test_by_default_the_first_decision_is_with_the_first_metric_after_a_ninth(max_steps, every, grace):
    experiment = toy.experiment(snapshots=Snapshots(every_steps=every), max_steps=max_steps)
    assert request(experiment=experiment, scheduler="asha").grace_steps == grace
    assert request(experiment=experiment, scheduler="asha", grace_steps=7 % max_steps).grace_steps == 7 % max_steps


def test_fewer_steps_are_those_of_the_trials():
    short = request(max_steps=27, scheduler="asha", experiment=toy.experiment(max_steps=900))
    assert short.max_steps == short.base.train.max_steps == short.to_json()["max_steps"] == 27
    assert short.grace_steps == 3
    assert request().max_steps == request().to_json()["max_steps"] == 12


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_trial_keeps_its_newest_checkpoint_and_its_best(mode):
    asked = Checkpoints(every_steps=5, every_seconds=None, keep_last=4, keep_every_seconds=60.0)
    experiment = toy.experiment(checkpoints=asked)
    made = request(experiment=experiment, mode=mode, metric="test/squared_error")
    assert made.experiment.train.checkpoints == Checkpoints(
        every_steps=5, every_seconds=None, keep_last=1, best=Best(metric="test/squared_error", mode=mode)
    )
    assert made.base == experiment


def test_base_and_experiment_differ_in_what_is_kept_alone():
    made = request(max_steps=9, resources={"trainer.num_cpus": "0.5", "evaler.custom": "{TPU: 1}"})
    kept = dataclasses.replace(made.experiment.train, checkpoints=made.base.train.checkpoints)
    assert dataclasses.replace(made.experiment, train=kept) == made.base
    assert made.base.resources.trainer.num_cpus == 0.5
    assert made.base.resources.evaler.custom == {"TPU": 1.0}
    assert made.base == config.override(
        toy.experiment(),
        {"train.max_steps": 9, "resources.trainer.num_cpus": 0.5, "resources.evaler.custom": {"TPU": 1.0}},
    )


def test_the_request_as_json():
    made = request(
        {RATE: "loguniform(1e-4, 1e-1)", "task.width": [2, 4]},
        mode="max",
        scheduler="asha",
        samples=3,
        resources={"hosts": "1"},
    )
    value = made.to_json()
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value == {
        "experiment": "toy.Regression",
        "params": {RATE: "loguniform(0.0001, 0.1)", "task.width": "choice(2, 4)"},
        "metric": "test/loss",
        "mode": "max",
        "samples": 3,
        "scheduler": "asha",
        "search": "random",
        "seed": 0,
        "max_steps": 12,
        "grace_steps": 3,
        "reduction_factor": 3,
        "concurrency": None,
        "max_failures": None,
        "resources": {"hosts": "1"},
    }
    assert request({"task.width": "grid(2, 4)"}).to_json()["samples"] == 1  # not what was asked for, but what there are


# -- files ------------------------------------------------------------------------------------------------------------

KEYS = ", ".join(["experiment", "set", "params", "metric", "mode", *(f.name for f in dataclasses.fields(Options))])


def test_a_file_has_what_the_command_line_has(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "experiment: toy.Regression\nset: {train.max_steps: 9}\nmetric: test/loss\nmode: min\n"
        "params:\n  learner.learning_rate: loguniform(1e-4, 1e-1)\n  task.width: [2, 4]\n"
        "samples: 4\nscheduler: asha\nresources: {trainer.num_cpus: 0.5}\n"
    )
    assert read_file(path) == {
        "experiment": "toy.Regression",
        "set": {"train.max_steps": 9},
        "metric": "test/loss",
        "mode": "min",
        "params": {RATE: "loguniform(1e-4, 1e-1)", "task.width": [2, 4]},
        "samples": 4,
        "scheduler": "asha",
        "resources": {"trainer.num_cpus": 0.5},
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"params: [1\n", "is not YAML (not valid YAML: line 2: expected ',' or ']'"),
        (b"mode: \xff\n", "is not YAML ('utf-8' codec can't decode byte 0xff"),
        (b"", f"expected keys and values ({KEYS})"),
        (b"- min\n", f"expected keys and values ({KEYS})"),
        (b"metrc: test/loss\n", "no key 'metrc'; did you mean metric?"),
        (b"zzz: 1\n", f"no key 'zzz'; there are {KEYS}"),
        (b"1: 2\n", "is not YAML (not valid YAML: line 1: a key must be a string (got 1); quote it)"),
        (b"experiment: [a]\n", "experiment must be a text (got ['a'])"),
        (b"metric: 1\n", "metric must be a text (got 1)"),
        (b"mode: {a: 1}\n", "mode must be a text (got {'a': 1})"),
        (b"set: 3\n", "set must have keys and values (got 3)"),
        (b"params: uniform(0, 1)\n", "params must have keys and values (got 'uniform(0, 1)')"),
        (b"resources: [1]\n", "resources must have keys and values (got [1])"),
    ],
)
def test_a_wrong_file_is_refused_in_a_line(tmp_path, content, message):
    path = tmp_path / "sweep.yaml"
    path.write_bytes(content)
    with pytest.raises(RequestError) as caught:
        read_file(path)
    assert str(caught.value).startswith(f"--config {path}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "reason"), [("none.yaml", "No such file or directory"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name, reason):
    with pytest.raises(RequestError) as caught:
        read_file(tmp_path / name)
    assert str(caught.value) == f"--config {tmp_path / name}: cannot be read ({reason})"


def test_a_key_of_a_file_is_not_given_twice(tmp_path):
    """Of two the first would be lost without a word; the files of experiments refuse it."""
    path = tmp_path / "sweep.yaml"
    path.write_text("params:\n  task.width: [2, 4]\n  task.width: [8]\n")
    with pytest.raises(RequestError, match="given twice"):
        read_file(path)


def test_a_file_and_the_command_line_read_words_alike(tmp_path):
    """`on` and `no` are words here, as in the files of experiments, and not YAML 1.1's booleans."""
    path = tmp_path / "sweep.yaml"
    path.write_text("params: {task.norm: [on, no]}\n")
    assert read_file(path)["params"] == {"task.norm": ["on", "no"]}


def test_what_a_file_gives_makes_options_and_a_request(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "params: {learner.learning_rate: [1e-4, 1e-3], task.dropout: 'uniform(0, 1e-1)'}\n"
        "max_steps: 90\nconcurrency: null\nresources: {evaler.num_cpus: 0.25}\n"
    )
    given = read_file(path)
    options = make_options({key: given[key] for key in given.keys() & {f.name for f in dataclasses.fields(Options)}})
    made = make_request(toy.experiment(), given["params"], metric="test/loss", mode="min", options=options)
    assert made.space == {RATE: Choice((1e-4, 1e-3)), "task.dropout": Uniform(0, 0.1)}
    assert (made.max_steps, made.options.concurrency, made.base.resources.evaler.num_cpus) == (90, None, 0.25)
