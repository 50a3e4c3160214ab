"""Lines of text are decoded with a checkpoint, each to one output, in order."""

import json

import copy_task
import jax
import numpy as np
import pytest

from raylingvo.actors.logdir import Logdir
from raylingvo.actors.offline_lines import decode_lines
from raylingvo.errors import RequestError
from raylingvo.experiment import Checkpoints
from raylingvo.training.checkpoints import CheckpointWriter
from raylingvo.training.state import init_state

EXPERIMENT = copy_task.experiment()
LINES = ["3 4", "", "5 6 7", "11"]


@pytest.fixture
def logdir(tmp_path):
    """A run that was stopped before its first step."""
    home = Logdir(tmp_path, EXPERIMENT)
    home.begin(["raylingvo"])
    home.update(id="Copy-1")
    home.close()
    batch = EXPERIMENT.datasets["train"].train_batches(4, 0)[0]
    writer = CheckpointWriter(tmp_path, Checkpoints(), lambda line: None)
    writer.save(4, jax.tree.map(np.asarray, init_state(EXPERIMENT, batch)), {}, on_saved=lambda: None)
    writer.close()
    return tmp_path


def test_each_line_has_its_output_whatever_the_batches(logdir):
    told = []
    result = decode_lines(logdir, LINES, batch_size=3, progress=told.append)
    assert [output["input"] for output in result["outputs"]] == LINES
    assert [output["source"] for output in result["outputs"]] == [[3, 4], [], [5, 6, 7], [11]]
    assert {key: result[key] for key in ("run", "experiment", "logdir", "step")} == {
        "run": "Copy-1",
        "experiment": "toy.Copy",
        "logdir": str(logdir),
        "step": 4,
    }
    assert told == ["decode @ 4: 3 of 4 lines", "decode @ 4: 4 of 4 lines"]
    assert decode_lines(logdir, LINES)["outputs"] == result["outputs"]
    json.dumps(result, allow_nan=False)


def test_no_lines_have_no_outputs(logdir):
    assert decode_lines(logdir, [])["outputs"] == []


def test_one_checkpoint_at_a_time(logdir):
    with pytest.raises(RequestError, match="one: latest, best or a step"):
        decode_lines(logdir, LINES, checkpoint="all")
    with pytest.raises(RequestError, match="5"):
        decode_lines(logdir, LINES, checkpoint="5")
