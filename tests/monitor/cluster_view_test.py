import json

from raylingvo.monitor import cluster_view
from raylingvo.monitor.exported import Sample


def about(status):
    return {"run": "ab12", "experiment": "image.digits.LeNet5", "logdir": "/runs/a", "status": status}


def test_a_row_says_how_far_a_run_is(status):
    assert cluster_view.row("ab12", about(status)) == {
        "run": "ab12",
        "experiment": "image.digits.LeNet5",
        "state": "training",
        "step": 205,
        "max_steps": 2000,
        "loss": status["trainer"]["loss"],
        "steps_per_second": status["trainer"]["steps_per_second"],
        "restarts": 1,  # of its Decoder
        "logdir": "/runs/a",
    }


def test_restarts_are_those_of_all_roles(status):
    status["trainer"]["restarts"] = 1
    status["readers"][0]["restarts"] = 2
    status["readers"][1]["restarts"] = 4
    assert cluster_view.row("ab12", about(status))["restarts"] == 7


def test_a_run_is_not_over_when_training_is(status):
    status["trainer"]["state"] = "finished"
    assert cluster_view.row("ab12", about(status))["state"] == "evaluating"


def test_a_table_has_a_line_for_each_run_whatever_is_known_of_it(status, capsys):
    status["trainer"]["loss"] = float("nan")
    rows = [cluster_view.row("a", about(status)), cluster_view.row("b", about(None)), cluster_view.row("c", None)]
    json.dumps(rows, allow_nan=False)
    cluster_view.print_runs(rows)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["run", "experiment", "state", "step", "loss", "steps/s", "restarts", "logdir"]
    assert lines[1][:5] == ["a", "image.digits.LeNet5", "training", "205/2000", "-"]
    assert lines[2] == ["b", "image.digits.LeNet5", "starting", "-", "-", "-", "0", "/runs/a"]
    assert lines[3] == ["c", "-", "no", "answer", "-", "-", "-", "0", "-"]


def test_no_runs_are_said_in_words(capsys):
    cluster_view.print_runs([])
    assert capsys.readouterr().out == "there are no runs in this cluster\n"


def test_one_run_is_shown_as_its_live_table_and_described_for_scripts(status, capsys):
    shown = cluster_view.described(about(status))
    assert {"status": "running", "state": "training", "logdir": "/runs/a"}.items() <= shown.items()
    assert shown["trainer"] == status["trainer"]
    cluster_view.print_run(shown)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("image.digits.LeNet5  run ab12")
    assert lines[2].startswith("Trainer")
    assert lines[-1] == "logdir /runs/a"


def test_a_run_that_has_said_nothing_yet_is_starting(capsys):
    cluster_view.print_run(cluster_view.described(about(None)))
    assert capsys.readouterr().out == "image.digits.LeNet5 (run ab12): starting\n  logdir  /runs/a\n"


def test_one_run_is_shown_with_what_its_roles_export(status, capsys):
    samples = [
        Sample("elapsed_seconds", 3600.0, "driver"),
        Sample("loss", 0.25, "evaler", "test"),
        Sample("loss", 0.125, "trainer", "train"),
        Sample("step", 205.0, "trainer", "train"),
        Sample("store_bytes", 1e9, "store"),
    ]
    shown = cluster_view.described(about(status | {"samples": samples}))
    assert json.loads(json.dumps(shown))["samples"][1] == {
        "name": "loss",
        "value": 0.25,
        "role": "evaler",
        "dataset": "test",
    }
    cluster_view.print_run(shown)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    start = next(i for i, line in enumerate(lines) if line[:1] == ["metric"])
    assert lines[start:] == [
        ["metric", "driver", "evaler(test)", "trainer", "store"],
        ["elapsed_seconds", "3600"],
        ["step", "205"],
        ["loss", "0.2500", "0.1250"],
        ["store_bytes", "1000000000"],
    ]
