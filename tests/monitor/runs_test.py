import json
import os
import socket
import subprocess
import sys

import psutil
import pytest

from raylingvo.errors import RequestError
from raylingvo.monitor.runs import better, compare, find_runs, flatten, labels, list_rows, load_run, show


def test_finds_logdirs_at_any_depth_but_not_within_one(make_logdir, tmp_path):
    paths = [make_logdir("b"), make_logdir("a/deep/er"), make_logdir("a/shallow")]
    make_logdir("b/trials/0")
    assert [run.logdir for run in find_runs([tmp_path])] == [paths[1], paths[2], paths[0]]


def test_a_run_named_twice_is_there_once_in_the_order_asked(make_logdir, tmp_path):
    b, a = make_logdir("b"), make_logdir("a")
    assert [run.logdir for run in find_runs([b, tmp_path, a])] == [b, a]


@pytest.mark.parametrize(
    ("name", "message"), [("absent", "does not exist"), ("file", "not a directory"), ("empty", "run.json")]
)
def test_what_holds_no_run_is_refused(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=f"{name} .*{message}") as caught:
        find_runs([tmp_path / name])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["absent", "file", "empty"])
def test_loading_what_is_no_logdir_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=f"{name} is not a logdir: it has no run.json"):
        load_run(tmp_path / name)


@pytest.mark.parametrize("content", ["{", "[]", "\ufffd", '{"id": "x"}', '{"id": 1, "status": "running"}'])
def test_a_damaged_run_json_is_refused_in_one_line(make_logdir, content):
    logdir = make_logdir("a")
    (logdir / "run.json").write_text(content)
    with pytest.raises(RequestError, match="cannot be read") as caught:
        load_run(logdir)
    assert "\n" not in str(caught.value)


def test_damaged_metrics_and_config_are_refused_in_one_line(make_logdir):
    logdir = make_logdir("a")
    (logdir / "train" / "metrics.jsonl").write_text("x\ny\n")
    (logdir / "config.yaml").write_text("a: [\n")
    run = load_run(logdir)
    with pytest.raises(RequestError, match=r"metrics\.jsonl, line 1"):
        list_rows([run])
    with pytest.raises(RequestError, match=r"config\.yaml is not YAML") as caught:
        _ = run.config
    assert "\n" not in str(caught.value)


def test_a_run_that_has_only_begun(make_logdir):
    logdir = make_logdir("a")
    for path in sorted(logdir.rglob("*"), reverse=True):
        if path.name != "run.json":
            path.rmdir() if path.is_dir() else path.unlink()
    (logdir / "run.json").write_text(json.dumps({"id": "x", "experiment": "e", "status": "running", "started": 5.0}))
    run = load_run(logdir)
    (row,) = list_rows([run])
    assert (row["step"], row["seconds"], row["train"], row["eval"]) == (None, None, {}, {})
    assert show(run)["metrics"] == {}


def test_list_rows(make_logdir):
    (row,) = list_rows([load_run(make_logdir("a"))])
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert (row["run"], row["status"], row["step"], row["seconds"]) == ("id-a", "finished", 100, 83.0)
    assert row["train"] == {"loss": 0.01, "learning_rate": 0.001, "num_preds": 256}
    assert row["eval"]["test"] == {"step": 100, "accuracy": pytest.approx(0.88), "loss": 0.02}
    assert row["decode"] == {"test": {"step": 100, "accuracy": 0.88}}


def test_a_running_run_is_as_old_as_its_newest_report(make_logdir):
    logdir = make_logdir("a")
    (logdir / "run.json").write_text(json.dumps({"id": "x", "status": "running", "started": 1000.0, "ended": None}))
    (row,) = list_rows([load_run(logdir)])
    assert (row["step"], row["seconds"]) == (100, 60.0)


def test_a_run_whose_process_is_gone_has_died(make_logdir):
    me = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "created": psutil.Process().create_time() - psutil.boot_time(),
    }
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    cases = [
        (me, "running"),
        ({**me, "host": "another"}, "running"),
        ({**me, "created": -5.0}, "died"),  # its process id belongs to another now
        ({**me, "pid": process.pid}, "died"),
    ]
    logdir = make_logdir("a")
    for process, status in cases:
        (logdir / "run.json").write_text(json.dumps({"id": "x", "status": "running", "process": process}))
        (row,) = list_rows([load_run(logdir)])
        assert row["status"] == show(load_run(logdir))["status"] == status


def test_show_has_the_last_and_the_best(make_logdir):
    shown = show(load_run(make_logdir("a")))
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert shown["stop_reason"] == "max_steps"
    accuracy = shown["metrics"]["eval_test"]["accuracy"]
    assert accuracy == {"last": pytest.approx(0.88), "step": 100, "best": 0.9, "best_step": 80}
    assert shown["metrics"]["train"]["loss"]["best"] == 0.01
    assert shown["metrics"]["train"]["learning_rate"]["best"] is None


def test_a_value_that_is_not_finite_is_never_the_best(make_logdir):
    logdir = make_logdir("a")
    records = [{"step": 1, "time": 0.0, "loss": 2.0}, {"step": 2, "time": 0.0, "loss": None}]
    (logdir / "train" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    loss = show(load_run(logdir))["metrics"]["train"]["loss"]
    assert loss == {"last": None, "step": 2, "best": 2.0, "best_step": 1}


def test_compare_shows_only_what_differs(make_logdir):
    a = make_logdir("a", learning_rate=0.1)
    b = make_logdir("b", learning_rate=0.2, extra_config="train:\n  seed: 1\n")
    compared = compare([load_run(a), load_run(b)])
    assert json.loads(json.dumps(compared, allow_nan=False)) == compared
    assert compared["config"] == {"learner.learning_rate": {"a": 0.1, "b": 0.2}, "train.seed": {"b": 1}}
    assert compared["metrics"]["eval_test/accuracy"]["a"] == compared["metrics"]["eval_test/accuracy"]["b"]
    assert list(compared["runs"]) == ["a", "b"]


def test_runs_of_one_config_differ_in_nothing(make_logdir):
    runs = [load_run(make_logdir(name)) for name in "abc"]
    assert compare(runs)["config"] == {}


def test_compare_needs_two(make_logdir):
    with pytest.raises(RequestError, match="at least two"):
        compare([load_run(make_logdir("a"))])


def test_labels_are_as_short_as_they_can_be(make_logdir):
    runs = {name: load_run(make_logdir(name)) for name in ("x/one", "y/one", "y/two")}
    assert labels([runs["y/one"], runs["y/two"]]) == ["one", "two"]
    assert labels(list(runs.values())) == ["x/one", "y/one", "y/two"]
    assert labels([runs["x/one"]]) == ["one"]


@pytest.mark.parametrize(
    ("metric", "pick"),
    [
        ("loss", min),
        ("log_pplx", min),
        ("error5", min),
        ("accuracy", max),
        ("correct_top1", max),
        ("corpus_bleu", max),
        ("sacrebleu", max),
        ("chrf/mt", max),
        ("learning_rate", None),
    ],
)
def test_better(metric, pick):
    assert better(metric) is pick


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}], "f": None}) == {
        "a.b": 1,
        "a.c": {},
        "d": [1, {"e": 2}],
        "f": None,
    }
    assert flatten({}) == {}
