"""Lines of text are decoded with a checkpoint as they come, each to one output, in order."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from line_task import EXPERIMENT, SHAPES, Scored, write_run

from raylingvo.actors import offline_lines
from raylingvo.actors.line_reader import LineReader
from raylingvo.actors.logdir import hold
from raylingvo.actors.offline_lines import decode_lines
from raylingvo.errors import RequestError
from raylingvo.experiment import Checkpoints
from raylingvo.models.task import Task
from raylingvo.training.checkpoints import CheckpointWriter
from raylingvo.training.state import Model

LINES = ["3 4", "", "5 6 7", "11"]


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints of untrained weights. Decoding lines leaves it as it is."""
    path = tmp_path_factory.mktemp("run")
    write_run(path)
    return path


def arriving(*parts: Sequence[str]) -> Callable[[int], list[str]]:
    """Lines that come in these parts."""
    rest = [list(part) for part in parts]

    def take(limit: int) -> list[str]:
        if rest and not rest[0]:
            rest.pop(0)
        taken = rest[0][:limit] if rest else []
        if rest:
            del rest[0][:limit]
        return taken

    return take


def decoded(logdir: Path, *parts: Sequence[str], **how: Any) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = []
    decode_lines(logdir, arriving(*parts), outputs.append, **{"checkpoint": "4", **how})
    return outputs


def test_each_line_has_its_output_in_order(logdir: Path) -> None:
    outputs: list[dict[str, Any]] = []
    result = decode_lines(logdir, arriving(LINES), outputs.append, checkpoint="4", batch_size=3)
    assert result == {"run": "Copy-1", "experiment": "toy.Copy", "logdir": str(logdir), "step": 4}
    assert [list(output)[:2] for output in outputs] == [["input", "line"]] * 4
    assert [(output["line"], output["input"]) for output in outputs] == list(enumerate(LINES, 1))
    assert [output["source"] for output in outputs] == [[3, 4], [], [5, 6, 7], [11]]
    json.dumps(outputs, allow_nan=False)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_outputs_do_not_depend_on_batches(logdir: Path, batch_size: int) -> None:
    whole = decoded(logdir, LINES * 3)
    assert decoded(logdir, LINES * 3, batch_size=batch_size) == whole
    assert decoded(logdir, LINES, LINES[:1], LINES[1:], LINES, batch_size=batch_size) == whole


def test_no_lines_have_no_outputs(logdir: Path) -> None:
    told: list[str] = []
    assert decoded(logdir, progress=told.append) == []
    assert told == ["decode @ 4: 0 lines"]


@pytest.mark.timeout(60)  # who waits for the end of the input would wait for ever
def test_a_line_is_answered_before_the_next_is_written(logdir: Path) -> None:
    read_end, write_end = os.pipe()
    outputs: list[dict[str, Any]] = []

    def write(output: dict[str, Any]) -> None:
        """The other side of a conversation: it writes a line when it has read the answer to the last."""
        outputs.append(output)
        if len(outputs) < len(LINES):
            os.write(write_end, f"{LINES[len(outputs)]}\n".encode())
        else:
            os.close(write_end)

    os.write(write_end, f"{LINES[0]}\n".encode())
    decode_lines(logdir, LineReader(read_end, "-").take, write, checkpoint="4")
    os.close(read_end)
    assert outputs == decoded(logdir, LINES)


def test_outputs_are_there_as_soon_as_those_before_them(logdir: Path) -> None:
    """Longest first: the third line's batch is decoded before that of the others."""
    seen: list[int] = []
    batches = SHAPES.copy()

    def write(output: dict[str, Any]) -> None:
        seen.append(len(SHAPES) - len(batches))

    decode_lines(logdir, arriving(["3 4 5", "3", "4 5 6"]), write, checkpoint="4", batch_size=2)
    assert seen == [1, 2, 2]


def test_few_shapes_are_compiled(logdir: Path) -> None:
    def shapes(*parts: int, batch_size: int = 32) -> list[tuple[int, int]]:
        SHAPES.clear()
        decoded(logdir, *(["3"] * part for part in parts), batch_size=batch_size)
        return SHAPES.copy()

    assert shapes(1) == [(1, 2)]
    assert shapes(1, 2, 8, 3, 1) == [(1, 2), (8, 2)]
    assert shapes(9, 31, 32) == [(32, 2)]
    # The rest of many lines takes the shape of those before it.
    assert shapes(16 * 32 + 1) == shapes(33) == [(32, 2)]
    # But a line that is typed afterwards does not.
    assert shapes(33, 1, 1) == [(32, 2), (1, 2)]
    assert shapes(3, 1, batch_size=4) == [(4, 2), (1, 2)]


def test_lines_of_like_length_are_decoded_together(logdir: Path) -> None:
    SHAPES.clear()
    assert len(decoded(logdir, ["3", "3 4 5"] * 4, batch_size=4)) == 8
    assert SHAPES == [(4, 4), (4, 2)]
    SHAPES.clear()
    assert len(decoded(logdir, ["3", "3 4 5"] * 2, batch_size=4)) == 4
    assert SHAPES == [(4, 4)]


def test_progress_is_told_now_and_then_and_notes_at_the_end(logdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*parts: Sequence[str]) -> list[str]:
        lines: list[str] = []
        decoded(logdir, *parts, batch_size=2, progress=lines.append)
        return lines

    notes = "1 of 4 lines has a note: 1 empty line"
    assert told(LINES) == ["decode @ 4: 4 lines", notes]
    monkeypatch.setattr(offline_lines, "_SECONDS_BETWEEN_REPORTS", 0.0)
    assert told(LINES) == [*(f"decode @ 4: {n} so far" for n in ("1 line", "2 lines", "3 lines", "4 lines")),
                           "decode @ 4: 4 lines", notes]  # fmt: skip
    assert told(*([line] for line in LINES)) == ["decode @ 4: 4 lines", notes]  # a line at a time: somebody types


def test_an_average_and_other_settings(logdir: Path) -> None:
    told: list[str] = []
    outputs: list[dict[str, Any]] = []
    overrides = {"task.num_hyps_per_beam": "1"}
    result = decode_lines(logdir, arriving(LINES), outputs.append, average=2, overrides=overrides, progress=told.append)
    assert {key: result[key] for key in ("step", "average", "set")} == {"step": 8, "average": [4, 8], "set": overrides}
    assert told[0] == "decode @ 8 (average of 4, 8): 4 lines"
    of_4 = [output["scores"] for output in decoded(logdir, LINES)]
    assert {len(scores) for scores in of_4} == {3}
    assert all(any(scores) for scores in of_4)
    # Weights w and -3 w average to -w.
    assert [output["scores"] for output in outputs] == [[-scores[0]] for scores in of_4]
    assert not (logdir / "variants").exists()


def test_lines_are_decoded_by_the_task_that_the_run_had_by_then(tmp_path: Path) -> None:
    """Population based training changes it. What is asked for counts more."""
    write_run(tmp_path)
    adopted = [{"step": 9, "params": {"task.num_hyps_per_beam": 2}, "origin": {}}]
    weights = jax.tree.map(np.asarray, Model.split(EXPERIMENT.task.init(nnx.Rngs(0))))
    with contextlib.closing(CheckpointWriter(tmp_path, Checkpoints(), lambda line: None)) as writer:
        writer.save(12, {"weights": weights}, {"adopted": adopted}, on_saved=lambda: None)
    outputs = decoded(tmp_path, LINES, checkpoint="12")
    assert {len(output["scores"]) for output in outputs} == {2}
    outputs = decoded(tmp_path, LINES, checkpoint="12", overrides={"task.num_hyps_per_beam": "1"})
    assert {len(output["scores"]) for output in outputs} == {1}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"checkpoint": "all"}, "one: latest, best or a step"),
        ({"checkpoint": "5"}, "no checkpoint '5'"),
        ({"checkpoint": "latest", "average": 3}, "--average 3: the checkpoints up to step 8 are 4, 8"),
        ({"overrides": {"train.max_steps": "3"}}, r"keys below task\. \(got train\.max_steps\)$"),
    ],
)
def test_what_cannot_be_decoded(logdir: Path, how: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        decoded(logdir, LINES, **how)


def test_a_task_that_reads_no_text_does_not_wait_for_it(logdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scored, "encode_lines", Task.encode_lines)
    with pytest.raises(RequestError, match=r"^Scored does not decode lines of text$"):
        decode_lines(logdir, lambda limit: pytest.fail("it waits"), lambda output: None)


def test_lines_before_an_error_are_decoded(logdir: Path, tmp_path: Path) -> None:
    outputs: list[dict[str, Any]] = []
    file = tmp_path / "input.txt"
    file.write_bytes(b"3\n4\n\xff\n5\n")
    with file.open("rb") as opened, pytest.raises(RequestError, match="line 3 is not UTF-8"):
        decode_lines(logdir, LineReader(opened.fileno(), "input.txt").take, outputs.append, checkpoint="4")
    assert [output["input"] for output in outputs] == ["3", "4"]


def test_the_logdir_is_free_while_lines_are_waited_for(logdir: Path) -> None:
    def take(limit: int) -> list[str]:
        with hold(logdir):
            return []

    decode_lines(logdir, take, lambda output: None)
