"""The Decoder writes one JSON line for each example, in order, and scores them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sequence_task
import toy
from flax import nnx

from raylingvo.actors.decoder import Decoder
from raylingvo.actors.reader import Arrival
from raylingvo.data.mixing import MixBatches, MixWithinBatches
from raylingvo.experiment import Reading
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


def decode_sequences(logdir, data, batch_size):
    experiment = sequence_task.experiment(data=data, reading=Reading(batch_size=batch_size))
    decoder = Decoder(experiment, "test", logdir)
    weights = Model.split(experiment.task.init(nnx.Rngs(5)))
    decoder.process(Arrival(42, 0.0, encode([np.array(x) for x in jax.tree.leaves(weights)])))
    decoder.close()
    lines = (logdir / "decode_test" / "decoder_out-00000042.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


BUCKETED = sequence_task.Pairs(bucket_bounds=(3, 6, 12))
SHORT = [i for i, lengths in enumerate(BUCKETED.open().length_NxC) if max(lengths) <= 12]


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_outputs_of_buckets_are_in_the_order_of_the_dataset(tmp_path, batch_size):
    lines = decode_sequences(tmp_path, BUCKETED, batch_size)
    assert [line["id"] for line in lines] == [str(i) for i in SHORT]
    assert lines == decode_sequences(tmp_path / "one by one", BUCKETED, 1)


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
