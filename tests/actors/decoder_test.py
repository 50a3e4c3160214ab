"""The Decoder writes one JSON line for each example, in order, and scores them."""

import contextlib
import dataclasses
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sequence_task
import toy
from flax import nnx

from raylingvo import describe
from raylingvo.actors.decoder import Decoder
from raylingvo.actors.evaler import Evaler
from raylingvo.actors.reader import Arrival
from raylingvo.data.mixing import MixBatches, MixWithinBatches
from raylingvo.errors import RequestError
from raylingvo.experiment import Best, Checkpoints, Reading
from raylingvo.models.pictures import Pictures
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.training.host_copy import encode
from raylingvo.training.state import Model

TASK = toy.Regression()
WEIGHTS = Model.split(TASK.init(nnx.Rngs(5)))


def decode(logdir, weights=WEIGHTS, **reading):
    decoder = Decoder(toy.experiment(task=TASK, reading=Reading(**reading)), "test", logdir)
    leaves = encode([np.array(x) for x in jax.tree.leaves(weights)])
    try:
        return decoder.process(Arrival(42, 0.0, leaves))
    finally:
        decoder.close()


@pytest.mark.parametrize(("batch_size", "max_examples", "num_examples"), [(7, None, 20), (64, None, 20), (4, 10, 10)])
def test_one_line_per_example_in_order(tmp_path, batch_size, max_examples, num_examples):
    metrics = decode(tmp_path, batch_size=batch_size, max_examples=max_examples)
    text = (tmp_path / "decode_test" / "decoder_out-00000042.jsonl").read_text()
    assert text.endswith("\n")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["id"] for line in lines] == [str(i) for i in range(num_examples)]
    module = Model(TASK).merge(WEIGHTS)
    predictions = TASK.decode(module, {"x": jnp.asarray(toy.Numbers(size=20).open().x_Nx4[:num_examples])})
    np.testing.assert_allclose([line["prediction"] for line in lines], predictions, rtol=1e-5)
    assert metrics["num_outputs"] == num_examples
    assert metrics["mean"] == pytest.approx(float(predictions.mean()), rel=1e-5)


def test_scores_of_all_outputs_together(tmp_path):
    """In the order in which they are written, however they come in batches."""
    metrics = [decode(tmp_path / str(size), batch_size=size) for size in (3, 7, 64)]
    lines = (tmp_path / "3" / "decode_test" / "decoder_out-00000042.jsonl").read_text().splitlines()
    predictions = [json.loads(line)["prediction"] for line in lines]
    for i, size in enumerate((3, 7, 64)):
        assert metrics[i]["range"] == pytest.approx(max(predictions) - min(predictions), rel=1e-5)
        assert metrics[i]["last"] == pytest.approx(predictions[-1], rel=1e-5)
        folder = tmp_path / str(size) / "decode_test"
        assert json.loads((folder / "signatures.json").read_text()) == {"range": "toy:1"}
        assert {"last", "mean", "range"} <= read_metrics(folder)[0].keys()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named(toy.Numbers):
    """Each example also has a text."""

    def open(self):
        rows = super().open()
        take = rows.take
        rows.__dict__["take"] = lambda i: {**take(i), "text": np.array([f"no. {j}" for j in i], object)}
        return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Naming(toy.Regression):
    """Outputs with the texts."""

    def decode(self, model, batch):
        assert "text" not in batch
        return super().decode(model, batch)

    def postprocess(self, decoded, batch):
        outputs, metrics = super().postprocess(decoded, batch)
        return [
            (key, {**output, "text": text}) for (key, output), text in zip(outputs, batch["text"], strict=False)
        ], metrics


def test_texts_of_a_batch_pass_by_the_device(tmp_path):
    experiment = toy.experiment(task=Naming(), reading=Reading(batch_size=7))
    experiment = dataclasses.replace(experiment, datasets={"train": toy.Numbers(), "test": Named(size=20)})
    leaves = encode([np.array(x) for x in jax.tree.leaves(WEIGHTS)])
    for role in (Decoder(experiment, "test", tmp_path), Evaler(experiment, "test", tmp_path)):
        role.process(Arrival(42, 0.0, leaves))
        role.close()
    lines = (tmp_path / "decode_test" / "decoder_out-00000042.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == [f"no. {i}" for i in range(20)]
    (fields,) = [row["fields"] for row in describe.datasets(experiment) if row["name"] == "test"]
    assert list(fields) == ["x", "y", "id"]


def best_by(name, *, evaluated=True):
    checkpoints = Checkpoints(best=Best(metric=f"test/{name}", mode="max"))
    experiment = toy.experiment(task=TASK, checkpoints=checkpoints)
    return experiment if evaluated else dataclasses.replace(experiment, eval={})


class NoSnapshots:
    """A feed of a run that ends at once."""

    def next(self):
        return None


def follow(experiment, logdir):
    with contextlib.closing(Decoder(experiment, "test", logdir)) as decoder:
        decoder.follow(NoSnapshots())


@pytest.mark.parametrize("name", ["range", "mean", "num_outputs"])
def test_a_metric_of_the_decoder_may_steer_the_run(tmp_path, name):
    for evaluated in (True, False):
        follow(best_by(name, evaluated=evaluated), tmp_path)
    Evaler(best_by(name), "test", tmp_path).close()  # it leaves the check to the Decoder


def test_a_metric_of_the_evaler_needs_no_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(toy.Regression, "postprocess", None)
    follow(best_by("loss"), tmp_path)


@pytest.mark.parametrize(
    ("evaluated", "name", "message"),
    [
        (
            True,
            "rang",
            r"neither evaluation nor decoding has a metric 'rang' \(got 'test/rang'\); did you mean range\?",
        ),
        (True, "bleu", r".*; the task gives loss, num_rows, num_outputs, mean, squared_error, range, last$"),
        (
            False,
            "loss",
            r"the decoding has no metric 'loss' .*; the task gives num_outputs, mean, squared_error, range",
        ),
    ],
)
def test_a_metric_that_nobody_reports_is_refused(tmp_path, evaluated, name, message):
    with pytest.raises(RequestError, match=r"^train\.checkpoints\.best\.metric: " + message):
        follow(best_by(name, evaluated=evaluated), tmp_path)


def decode_sequences(logdir, data, batch_size, task=None):
    experiment = sequence_task.experiment(data=data, reading=Reading(batch_size=batch_size))
    experiment = dataclasses.replace(experiment, task=task or experiment.task)
    weights = Model.split(experiment.task.init(nnx.Rngs(5)))
    with contextlib.closing(Decoder(experiment, "test", logdir)) as decoder:
        decoder.process(Arrival(42, 0.0, encode([np.array(x) for x in jax.tree.leaves(weights)])))
    lines = (logdir / "decode_test" / "decoder_out-00000042.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


BUCKETED = sequence_task.Pairs(bucket_bounds=(3, 6, 12))
SHORT = [i for i, lengths in enumerate(BUCKETED.open().length_NxC) if max(lengths) <= 12]


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_outputs_of_buckets_are_in_the_order_of_the_dataset(tmp_path, batch_size):
    lines = decode_sequences(tmp_path, BUCKETED, batch_size)
    assert [line["id"] for line in lines] == [str(i) for i in SHORT]
    assert lines == decode_sequences(tmp_path / "one by one", BUCKETED, 1)
    assert not (tmp_path / "decode_test" / "signatures.json").exists()  # this task has no scores of a corpus


@pytest.mark.parametrize("mix", [MixBatches, MixWithinBatches])
def test_outputs_of_several_datasets_come_dataset_after_dataset(tmp_path, mix):
    """Those whose `id` starts again from 0, too."""
    parts = tuple(dataclasses.replace(BUCKETED, first=first) for first in (100, 0))
    lines = decode_sequences(tmp_path, mix(datasets=parts, weights=(1, 1)), 4)
    assert [line["id"] for line in lines] == [str(first + i) for first in (100, 0) for i in SHORT]


def test_every_example_of_a_packed_row_has_its_own_line(tmp_path):
    lines = decode_sequences(tmp_path, sequence_task.PACKED, 4)
    assert sorted(int(line["id"]) for line in lines) == SHORT
    of_buckets = decode_sequences(tmp_path / "buckets", BUCKETED, 4)
    assert sorted(lines, key=lambda line: int(line["id"])) == of_buckets


def test_an_output_that_json_cannot_say_is_an_error_and_leaves_nothing(tmp_path):
    nan = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), WEIGHTS)
    with pytest.raises(ValueError, match="not JSON compliant"):
        decode(tmp_path, weights=nan, batch_size=7)
    assert list((tmp_path / "decode_test").glob("*.jsonl")) == []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn(sequence_task.Labels):
    """Its picture is of 1 pixel, and says of which examples."""

    broken: bool = False

    def pictures(self):
        return Pixels(self.broken)


class Pixels(Pictures):
    num_examples = 3

    def __init__(self, broken):
        self.broken = broken

    def inputs(self, rows):
        return {"id": np.array([row.batch["id"][row.row] for row in rows])}

    def arrays(self, model, inputs):
        return 2 * inputs["id"]

    def draw(self, arrays, rows):
        if self.broken:
            raise OSError("no ink")
        assert [row.batch["weight"][row.row] for row in rows] == [1.0] * len(rows)
        return {"pixels": PNG + json.dumps(arrays.tolist()).encode()}


# The header of a PNG file of 1 x 1, of gray.
PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBB", 13, b"IHDR", 1, 1, 8, 0)


@pytest.mark.parametrize(
    ("data", "ids"),
    [
        (BUCKETED, SHORT[:3]),
        (MixBatches(datasets=(BUCKETED, dataclasses.replace(BUCKETED, first=9)), weights=(1, 1)), SHORT[:3]),
    ],
)
def test_the_first_examples_are_drawn(tmp_path, data, ids):
    decode_sequences(tmp_path, data, 4, Drawn())
    (picture,) = (tmp_path / "decode_test").glob("*.png")
    assert picture.name == "pixels-00000042.png"
    assert json.loads(picture.read_bytes().removeprefix(PNG)) == [2 * i for i in ids]


def test_a_picture_that_fails_is_an_error_after_the_metrics(tmp_path):
    with pytest.raises(OSError, match="no ink"):
        decode_sequences(tmp_path, BUCKETED, 4, Drawn(broken=True))
    assert [record["step"] for record in read_metrics(tmp_path / "decode_test")] == [42]
    assert (tmp_path / "decode_test" / "score-00000042.txt").exists()


def test_a_task_without_pictures_compiles_none(tmp_path, monkeypatch):
    def compute(self, weights, inputs):
        raise AssertionError

    monkeypatch.setattr(Decoder, "_compute_pictures", compute)
    decode(tmp_path)
    assert not list((tmp_path / "decode_test").glob("*.png"))
