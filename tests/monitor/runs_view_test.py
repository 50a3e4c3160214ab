import io

import pytest

from raylingvo.monitor.runs import compare, list_rows, load_run, show
from raylingvo.monitor.runs_view import compare_table, list_table, print_table, show_table


def printed(table):
    stream = io.StringIO()
    print_table(table, stream)
    return stream.getvalue()


def test_a_pipe_gets_a_whole_line_for_each_run(make_logdir):
    runs = [load_run(make_logdir(f"{'long' * 30}/run-{i}")) for i in range(3)]
    header, *lines = printed(list_table(list_rows(runs))).splitlines()
    assert header.split() == ["run", "experiment", "status", "step", "started", "took", "metrics", "logdir"]
    assert len(lines) == 3
    for run, line in zip(runs, lines, strict=True):
        assert str(run.logdir) in line
        for fact in (run.id, "image.digits.LeNet5", "finished", "100", "0:01:23", "loss 0.01", "test accuracy 0.88"):
            assert fact in line


def test_show_has_facts_and_metrics(make_logdir):
    text = printed(show_table(show(load_run(make_logdir("a")))))
    for fact in ("stop_reason", "max_steps", "raylingvo run", "jax 1.2", "eval_test", "accuracy"):
        assert fact in text
    (accuracy,) = [line.split() for line in text.splitlines() if line.startswith("eval_test")]
    assert accuracy == ["eval_test", "accuracy", "0.8800", "100", "0.9000", "80"]


def test_compare_has_a_column_for_each_run(make_logdir):
    a = load_run(make_logdir("a", learning_rate=0.5))
    b = load_run(make_logdir("b", learning_rate=0.25, extra_config="train:\n  seed: 9\n"))
    lines = [line.split() for line in printed(compare_table(compare([a, b]))).splitlines()]
    assert ["config", "a", "b"] in lines
    assert ["learner.learning_rate", "0.5", "0.25"] in lines
    assert ["train.seed", "absent", "9"] in lines
    assert ["eval_test/accuracy", *(["0.8800", "(0.9000", "@", "80)"] * 2)] in lines


def test_compare_says_when_configs_are_the_same(make_logdir):
    runs = [load_run(make_logdir(name)) for name in "ab"]
    assert "the same" in printed(compare_table(compare(runs)))


@pytest.mark.parametrize("value", ["[red]", "a[/]b"])
def test_brackets_in_values_are_text_not_markup(make_logdir, value):
    run = load_run(make_logdir("a", experiment=value))
    assert value in printed(list_table(list_rows([run])))
    assert value in printed(show_table(show(run)))
