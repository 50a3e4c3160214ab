import errno
import io
import json
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imsave

from raylingvo.errors import RequestError
from raylingvo.monitor.metrics_log import MetricsLog, json_tree, json_values, read_metrics


def steps(directory):
    return [record["step"] for record in read_metrics(directory)]


def test_a_line_for_each_write(tmp_path):
    with MetricsLog(tmp_path / "new" / "train") as log:
        log.write(10, {"loss": 0.5, "accuracy": np.float32(0.25)}, time=3.5)
        log.write(20, {"loss": 1})
    lines = (tmp_path / "new" / "train" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"step": 10, "time": 3.5, "loss": 0.5, "accuracy": 0.25}
    assert json.loads(lines[1]).keys() == {"step", "time", "loss"}
    assert len(lines) == 2


def test_values_that_are_not_finite_become_null_and_the_file_stays_json(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1e300}, time=0.0)

    def refuse(constant):
        raise AssertionError(constant)

    line = (tmp_path / "metrics.jsonl").read_text()
    values = {"a": None, "b": None, "c": None, "d": 1e300}
    assert json.loads(line, parse_constant=refuse) == {"step": 1, "time": 0, **values}


def test_json_values_are_plain_floats_and_none():
    values = json_values({"a": np.float32(0.25), "b": 1, "c": np.float32("nan")})
    assert values == {"a": 0.25, "b": 1.0, "c": None}
    assert [type(value) for value in values.values()] == [float, float, type(None)]


def test_resuming_drops_later_steps_here_and_in_tensorboard(tmp_path, shown_by_tensorboard):
    with MetricsLog(tmp_path) as log:
        for step in (10, 20, 30):
            log.write(step, {"loss": step})
    with MetricsLog(tmp_path, last_step=20) as log:
        assert steps(tmp_path) == [10, 20]
        log.write(25, {"loss": 2.5})
    assert steps(tmp_path) == [10, 20, 25]
    assert shown_by_tensorboard(tmp_path).keys() == {10, 20, 25}


def test_reopening_without_a_step_keeps_all(tmp_path):
    for step in (1, 2):
        with MetricsLog(tmp_path) as log:
            log.write(step, {"loss": 0.0})
    assert steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_torn_last_line_is_dropped_wherever_it_was_cut(tmp_path, cut):
    with MetricsLog(tmp_path) as log:
        log.write(1, {"loss": 0.5})
        log.write(2, {"löss": 0.5})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[: -2 - cut])  # at least the newline and the brace are missing
    assert steps(tmp_path) == [1]
    with MetricsLog(tmp_path) as log:
        log.write(3, {"loss": 0.5})
    assert steps(tmp_path) == [1, 3]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3]


@pytest.mark.parametrize("cut", [0, 1, 9])
@pytest.mark.parametrize("zeros", [1, 2, 3, 4, 5, 4096])
def test_zeros_at_the_end_are_dropped(tmp_path, cut, zeros):
    """As file systems leave after a power failure: the size was on disk, what had been written was not."""
    with MetricsLog(tmp_path) as log:
        log.write(1, {"loss": 0.5})
        log.write(2, {"loss": 0.5})
    path = tmp_path / "metrics.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - cut] + bytes(zeros))
    kept = [1, 2] if cut == 0 else [1]
    assert steps(tmp_path) == kept
    with MetricsLog(tmp_path) as log:
        log.write(3, {"loss": 0.5})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [*kept, 3]


@pytest.mark.parametrize("content", [b"", bytes(1), bytes(4096)])
def test_a_file_of_which_nothing_is_left_is_begun_again(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert steps(tmp_path) == []
    with MetricsLog(tmp_path) as log:
        log.write(3, {"loss": 0.5})
    assert steps(tmp_path) == [3]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 0.0, "loss": 1.0}')
    with MetricsLog(tmp_path) as log:
        log.write(2, {"loss": 0.5})
    assert steps(tmp_path) == [1, 2]


def test_a_second_write_of_a_step_replaces_the_first(tmp_path):
    with MetricsLog(tmp_path) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": step})
        log.write(2, {"loss": 9.0})
    assert [record["loss"] for record in read_metrics(tmp_path)] == [1.0, 9.0, 3.0]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("seed", range(5))
def test_file_and_tensorboard_hold_the_same_whatever_the_order(tmp_path, shown_by_tensorboard, seed):
    rng = random.Random(seed)
    expected = {}
    for _ in range(4):  # as many openings
        last_step = rng.choice([None, rng.randrange(12)])
        expected = {step: loss for step, loss in expected.items() if last_step is None or step <= last_step}
        with MetricsLog(tmp_path, last_step=last_step) as log:
            for _ in range(6):
                step = rng.randrange(12)
                expected[step] = float(np.float32(rng.random()))  # TensorBoard keeps float32
                log.write(step, {"loss": expected[step]})
    assert {record["step"]: record["loss"] for record in read_metrics(tmp_path)} == expected
    assert {step: values["loss"] for step, values in shown_by_tensorboard(tmp_path).items()} == expected


def test_reading_sorts_and_the_last_record_of_a_step_wins(tmp_path):
    records = [(2, 1.0), (1, 2.0), (2, 3.0)]
    lines = [json.dumps({"step": step, "time": 0.0, "loss": loss}) for step, loss in records]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(1, 2.0), (2, 3.0)]


def test_reading_what_is_not_there_gives_nothing(tmp_path):
    assert read_metrics(tmp_path / "absent") == []


@pytest.mark.parametrize("line", ["garbage", "", '"\xff"', "[1]", '{"time": 1.0}', '{"step": 1}'])
def test_damage_that_no_crash_explains_is_reported_with_its_line(tmp_path, line):
    good = '{"step": 1, "time": 0.0}'
    (tmp_path / "metrics.jsonl").write_bytes(f"{good}\n{line}\n{good}\n".encode("latin-1"))
    for read in (read_metrics, MetricsLog):
        with pytest.raises(RequestError, match=r"metrics\.jsonl, line 2: .*") as raised:
            read(tmp_path)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["step", "time"])
def test_reserved_names_are_refused(tmp_path, name):
    with MetricsLog(tmp_path) as log, pytest.raises(ValueError, match=repr(name)):
        log.write(1, {name: 1.0})


def test_writing_after_close_is_refused(tmp_path):
    log = MetricsLog(tmp_path)
    log.close()
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log.write(1, {"loss": 1.0})


def test_a_full_disk_is_loud_and_leaves_no_torn_line(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path)
    log.write(1, {"loss": 1.0})
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:5]))
    with pytest.raises(OSError, match=r"metrics\.jsonl") as caught:
        log.write(2, {"loss": 1.0})
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    log.write(3, {"loss": 1.0})
    log.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 3]


def test_a_log_needs_no_tensorflow_jax_or_ray(tmp_path):
    script = (
        "import sys, pathlib; from raylingvo.monitor.metrics_log import MetricsLog\n"
        "with MetricsLog(pathlib.Path(sys.argv[1])) as log: log.write(1, {'loss': 1.0})\n"
        "print({'tensorflow', 'jax', 'ray'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_tree_that_json_can_say():
    value = {"a": [1.5, float("nan"), {"b": (float("inf"), "text", None, 3)}]}
    assert json_tree(value) == {"a": [1.5, None, {"b": [None, "text", None, 3]}]}


def test_pictures_lie_beside_the_metrics_and_outlast_a_step_that_is_put_in(tmp_path, read_events):
    """TensorBoard is told to forget what comes after that step."""
    image = io.BytesIO()
    imsave(image, np.zeros((2, 2, 4), np.uint8), format="png")
    with MetricsLog(tmp_path) as log:
        for step in (30, 10, 20):
            log.write(step, {"loss": step}, time=float(step))
            log.write_pictures(step, {"a": image.getvalue()}, time=float(step))
        log.write(20, {"loss": 2}, time=20.0)  # its picture is to follow
    shown = []
    for event in read_events(tmp_path):
        if event.session_log.status == event.session_log.START:
            shown = [at for at in shown if at[0] < event.step]
        elif event.summary.value and event.summary.value[0].tag == "a":
            shown.append((event.step, event.wall_time))
    assert sorted(shown) == [(10, 10.0), (30, 30.0)]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [f"a-000000{step}.png" for step in (10, 20, 30)]
    with pytest.raises(ValueError, match="closed"):
        log.write_pictures(40, {})
