"""What the experiment's own code tells of a sweep: its metrics, the sizes of checkpoints, which weights fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import pytest
import toy

from raylingvo.errors import RequestError
from raylingvo.experiment import Experiment, Reading
from raylingvo.training.state import init_state
from raylingvo.tune.outlook import Outlook, look_ahead, said_of_memory
from raylingvo.tune.request import Options, make_request

RATE = "learner.learning_rate"


@dataclasses.dataclass
class Order:
    """Of this process: it has its place already."""

    experiment: Experiment

    def take_place(self) -> Experiment:
        return self.experiment


def outlook(metric="test/loss", variants=(), *, experiment=None) -> Outlook:
    params = {RATE: "uniform(0.1, 1)"}
    experiment = experiment or toy.experiment()
    made = make_request(experiment, params, metric=metric, mode="min", options=Options())
    order: Any = Order(made.experiment)
    return look_ahead(order, metric, variants)


def refused(*args, **kwargs) -> str:
    with pytest.raises(RequestError) as caught:
        outlook(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(**fields) -> Experiment:
    return dataclasses.replace(toy.experiment(), **fields)


# -- the metric -------------------------------------------------------------------------------------------------------


def test_what_an_evaluation_gives_needs_no_decoder():
    assert outlook("test/loss").decoders == []
    assert outlook("test/num_rows", experiment=without(decode={})).decoders == []


def test_what_an_evaluation_does_not_give_needs_the_decoder_of_its_dataset():
    other = {"test": Reading(batch_size=7), "train": Reading(batch_size=7)}
    for metric in ("test/squared_error", "test/range"):
        assert outlook(metric, experiment=without(decode=other)).decoders == ["test"]


def test_a_dataset_that_is_only_decoded_needs_its_decoder():
    """Also for a name that its evaluation would give, and for any other: the Decoder checks it."""
    for metric in ("test/loss", "test/squared_error", "test/zzz"):
        assert outlook(metric, experiment=without(eval={})).decoders == ["test"]
    other = {"test": Reading(batch_size=7), "train": Reading(batch_size=7)}
    assert outlook("train/loss", experiment=without(decode=other)).decoders == ["train"]


@pytest.mark.parametrize(
    ("name", "hint"), [("los", "did you mean loss?"), ("num_row", "did you mean num_rows?"), ("zzz", "the task gives ")]
)
def test_an_unknown_metric_names_those_that_there_are(name, hint):
    message = refused(f"test/{name}", experiment=without(decode={}))
    assert message.startswith(f"--metric: the evaluation has no metric '{name}' (got 'test/{name}'); {hint}")
    if name == "zzz":
        assert message.endswith("loss, num_rows")


# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_size_of_a_checkpoint_is_that_of_the_state(dtype):
    experiment = toy.experiment(task=toy.Regression(width=9, dtype=dtype))
    batch, *_ = toy.batches(1)
    leaves = jax.tree.leaves(init_state(experiment, batch))
    assert outlook(experiment=experiment).nbytes == sum(leaf.nbytes for leaf in leaves)


def test_the_states_that_others_may_take_are_said_and_warned_of():
    (said,) = said_of_memory(8, 5_000_000, 80_000_000)
    assert said == (
        "in memory at most a state of 5.0 MB for each trial that waits or has ended: 40.0 MB (object store: 80.0 MB)"
    )
    _, warned = said_of_memory(8, 5_000_001, 80_000_000)
    assert warned.startswith("that is more than half of the object store: Ray may move states to disk")


def test_variants_of_the_same_weights_are_fine():
    variants = [{RATE: 0.5}, {"task.dropout": 0.1}, {RATE: 0.25}]
    assert outlook(variants=variants) == outlook()


@pytest.mark.parametrize(("key", "value"), [("task.width", 9), ("task.dtype", "bfloat16"), ("task.statistics", False)])
def test_variants_of_other_weights_are_refused(key, value):
    assert refused(variants=[{RATE: 0.5}, {key: value}]) == (
        f"--scheduler pbt: trials with {key}={value} have other weights; none can take another's"
    )
