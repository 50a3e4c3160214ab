"""The Decoder writes one JSON line for each example, in order, and scores them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from flax import nnx

from raylingvo.actors.decoder import Decoder
from raylingvo.actors.reader import Arrival
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


def test_an_output_that_json_cannot_say_is_an_error_and_leaves_nothing(tmp_path):
    nan = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), WEIGHTS)
    with pytest.raises(ValueError, match="not JSON compliant"):
        decode(tmp_path, weights=nan, batch_size=7)
    assert list((tmp_path / "decode_test").glob("*.jsonl")) == []
